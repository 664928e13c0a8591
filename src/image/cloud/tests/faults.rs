//! Transfers that fail, each with its sentence, and leave nothing.

use std::net::TcpListener;

use super::server::{Fault, FileServer};
use super::*;

#[test]
fn what_a_server_does_wrong_is_told_in_a_sentence() {
    let content = qcow2(1, 3);
    let server = FileServer::start();
    let cases: [(Vec<Fault>, &str); 12] = [
        (
            vec![Fault::Status(404, String::new())],
            "the server has no URL/disk",
        ),
        (
            vec![Fault::Status(410, String::new())],
            "the server has no URL/disk",
        ),
        (
            vec![Fault::Status(401, String::new())],
            "the server refuses access to URL/disk: status 401",
        ),
        (
            vec![Fault::Status(418, String::new())],
            "the server does not send URL/disk: status 418",
        ),
        // Nothing was known.
        (
            vec![Fault::Status(304, String::new())],
            "the server does not send URL/disk: status 304",
        ),
        (
            vec![Fault::Status(503, String::new()); 6],
            "the server cannot send URL/disk now: status 503",
        ),
        (
            vec![Fault::Status(429, "Retry-After: 3600\r\n".into())],
            "the server cannot send URL/disk now: status 429",
        ),
        (
            vec![Fault::Less(1 << 16), Fault::SaysRange("bytes 7-8/9")],
            "the server sends a wrong part of URL/disk: \"bytes 7-8/9\" instead of bytes 65536 to 131071",
        ),
        (
            vec![Fault::Less(1 << 16), Fault::Lie(vec![1; 1 << 17])],
            "the server sends more than the part of URL/disk that ends with byte 131071",
        ),
        (
            (2..6)
                .map(|seed| [Fault::Less(9), Fault::Change(qcow2(seed, 3))])
                .collect::<Vec<_>>()
                .concat(),
            "URL/disk has changed 4 times while it was fetched",
        ),
        (
            vec![Fault::Cut(100); 7],
            "the server broke off while it sent URL/disk: ",
        ),
        (
            vec![Fault::Status(302, "Location: /disk\r\n".into()); 11],
            "cannot follow where URL/disk leads: error following redirect: it leads on more than 10 times",
        ),
    ];
    for (faults, expected) in cases {
        server.put("/disk", &content);
        server.fail("/disk", faults);
        let options = CloudOptions {
            connections: NonZeroUsize::MIN,
            ..options()
        };
        let told = refusal(&server, "/disk", &options);
        match expected.ends_with(' ') {
            true => assert!(told.starts_with(expected), "{told}"),
            false => assert_eq!(told, expected),
        }
    }
}

#[test]
fn a_whole_file_that_is_shorter_than_was_promised_is_never_taken_for_whole() {
    let server = FileServer::start();
    server.put_plain("/plain", &qcow2(1, 3), true);
    server.fail("/plain", vec![Fault::Cut(200_000); 6]);
    let told = refusal(&server, "/plain", &options());
    assert!(
        told.starts_with("the server broke off while it sent URL/plain"),
        "{told}"
    );
    assert_eq!(server.asked().len(), 6);
}

#[test]
fn what_is_not_expected_is_not_kept() {
    let content = qcow2(1, 3);
    let server = FileServer::start();
    server.put("/disk", &content);
    let expected = Digest::of(b"another");
    let options = CloudOptions {
        expected: Some(expected),
        ..options()
    };
    let told = refusal(&server, "/disk", &options);
    let actual = Digest::of(&content);
    assert_eq!(
        told,
        format!("URL/disk has the digest {actual}, not {expected}; nothing of it is kept")
    );
}

#[test]
fn what_is_too_large_is_refused_before_it_comes() {
    let server = FileServer::start();
    server.put("/disk", &qcow2(1, 3));
    server.put_plain("/endless", &qcow2(1, 3), false);
    let small = CloudOptions {
        limit: 300_000,
        ..options()
    };
    for path in ["/disk", "/endless"] {
        let told = refusal(&server, path, &small);
        assert!(
            told.starts_with(&format!("URL{path} has "))
                && told.ends_with(", and a disk image may have 292.9KiB"),
            "{told}"
        );
        assert_eq!(server.ranges(path).len(), 1);
    }
    // More than any disk has.
    let huge = "bytes 0-65535/1000000000000000000";
    server.fail("/disk", [Fault::SaysRange(huge)]);
    let boundless = CloudOptions {
        limit: u64::MAX,
        ..options()
    };
    let told = refusal(&server, "/disk", &boundless);
    assert!(
        told.starts_with("URL/disk has 888.1PiB, and in ") && told.ends_with(" are free"),
        "{told}"
    );
}

#[test]
fn a_web_page_is_refused_at_once_whatever_it_is_called() {
    let server = FileServer::start();
    let mut page = b"<!DOCTYPE html><html><title>Sign in</title>".to_vec();
    server.put("/short", &page);
    page.resize(10 << 20, b' ');
    server.put("/long", &page);
    for path in ["/short", "/long"] {
        let told = refusal(&server, path, &options());
        assert_eq!(
            told,
            format!("URL{path} is a web page, no disk image that can be used")
        );
    }
    assert!(server.ranges("/long").len() < 8);
    server.put("/empty", b"");
    let told = refusal(&server, "/empty", &options());
    assert_eq!(
        told,
        "URL/empty is an empty file, no disk image that can be used"
    );
}

#[test]
fn nobody_there_is_told_at_once_and_without_the_login() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let host = Host::new();
    for address in [closed.to_string(), "nowhere.invalid".to_owned()] {
        let url: CloudUrl = format!("http://me:s3cr3t@{address}/disk?x=1")
            .parse()
            .unwrap();
        let heard = Heard::default();
        let error = pull(&url, None, &options(), &host.store, &heard).unwrap_err();
        let told = chain(&error);
        let expected = format!("cannot reach http://{address}/disk?x=1");
        assert!(told.starts_with(&expected), "{told}");
        assert!(!told.contains("s3cr3t") && !format!("{error:?}").contains("s3cr3t"));
        assert_eq!(heard.0.into_inner().unwrap(), [""; 0]);
    }
    host.assert_nothing_staged();
}
