//! Transfers that go well, in the end.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::time::{SystemTime, UNIX_EPOCH};

use super::server::{Fault, FileServer};
use super::*;

#[test]
fn a_large_file_comes_in_pieces_over_several_connections_each_byte_once() {
    let server = FileServer::start();
    let content = qcow2(1, 20);
    server.put("/disk", &content);
    let (host, heard) = (Host::new(), Heard::default());
    let pulled = pull(
        &url(&server, "/disk"),
        None,
        &options(),
        &host.store,
        &heard,
    )
    .unwrap();
    let Pulled::Ready(disk) = pulled else {
        panic!("nothing was known")
    };
    assert_is(&host, &disk, &content);
    assert_eq!(disk.virtual_size, 20 * CLUSTER as u64);
    assert!(disk.size_on_disk >= 20 * CLUSTER as u64);
    assert_eq!(disk.etag.as_deref(), Some("\"0\""));
    assert_eq!(
        disk.last_modified.as_deref(),
        Some("Wed, 21 Oct 2015 07:28:00 GMT")
    );
    let mut ranges = server.ranges("/disk");
    ranges.sort();
    let mut expected: Vec<_> = (0..25)
        .map(|piece| format!("bytes={}-{}", piece * CLUSTER, (piece + 1) * CLUSTER - 1))
        .collect();
    expected.sort();
    assert_eq!(ranges, expected);
    // The first request cannot name a version yet; the others do.
    let joined = server
        .asked()
        .iter()
        .filter(|asked| asked.header("if-range") == Some("\"0\""))
        .count();
    assert_eq!(joined, 24);
    let heard = heard.0.into_inner().unwrap();
    assert_eq!(heard[0], format!("Fetching Some({})", content.len()));
    let advanced = heard
        .iter()
        .filter_map(|line| line.strip_prefix("advanced "));
    let advanced: usize = advanced.map(|bytes| bytes.parse::<usize>().unwrap()).sum();
    assert_eq!(advanced, content.len());
}

#[test]
fn a_small_file_needs_one_request_and_a_plain_server_is_taken_as_it_is() {
    let content = qcow2(1, 3);
    let server = FileServer::start();
    server.put("/small", &content);
    server.put_plain("/plain", &content, true);
    server.put_plain("/endless", &content, false);
    // Parts that nothing joins.
    server.put("/unmarked", &content);
    server.mark("/unmarked", None, None);
    server.put("/weak", &content);
    server.mark("/weak", Some("W/\"0\""), None);
    // Joined by a date that is old enough.
    server.put("/dated", &content);
    server.mark("/dated", None, Some("Wed, 21 Oct 2015 07:28:00 GMT"));
    let whole = CloudOptions {
        piece: 16 << 20,
        ..options()
    };
    for (path, options, requests) in [
        ("/small", &whole, 1),
        ("/plain", &options(), 1),
        ("/endless", &options(), 1),
        ("/unmarked", &options(), 2),
        ("/weak", &options(), 2),
        ("/dated", &options(), 8),
    ] {
        let host = Host::new();
        let disk = pull_with(&server, path, &host, options).unwrap();
        assert_is(&host, &disk, &content);
        assert_eq!(server.ranges(path).len(), requests, "{path}");
    }
}

#[test]
fn a_server_may_send_less_than_it_is_asked_for() {
    let server = FileServer::start();
    let content = qcow2(1, 2);
    server.put("/disk", &content);
    server.fail("/disk", (0..9).map(|_| Fault::Less(10_000)));
    let host = Host::new();
    let disk = pull_with(&server, "/disk", &host, &options()).unwrap();
    assert_is(&host, &disk, &content);
    assert_eq!(server.ranges("/disk").len(), 9 + 7);
}

#[test]
fn a_server_that_dies_at_ten_places_and_comes_back_is_pulled_from_all_the_same() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = u64::try_from(seed.as_nanos() & u128::from(u64::MAX)).unwrap();
    println!("seed {seed}");
    let content = qcow2(1, 40);
    let mut deaths: Vec<u64> = noise(seed, 80)
        .chunks(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()) % content.len() as u64)
        .collect();
    deaths.sort_unstable();
    println!("it dies at {deaths:?}");
    for connections in [1, 4] {
        let server = FileServer::start();
        server.put("/disk", &content);
        server.die_at(deaths.clone());
        let options = CloudOptions {
            connections: NonZeroUsize::new(connections).unwrap(),
            retry: RetryPolicy {
                attempts: 30,
                ..options().retry
            },
            ..options()
        };
        let host = Host::new();
        let disk = pull_with(&server, "/disk", &host, &options).unwrap();
        assert_is(&host, &disk, &content);
        assert_eq!(server.deaths_left(), 0);
    }
}

#[test]
fn a_cut_piece_goes_on_where_it_broke_and_a_whole_file_from_its_beginning() {
    let server = FileServer::start();
    let content = qcow2(1, 2);
    server.put("/disk", &content);
    server.put_plain("/plain", &content, true);
    // All of it is one part, and nothing would join two.
    server.put("/unmarked", &content);
    server.mark("/unmarked", None, None);
    for (path, piece) in [
        ("/disk", CLUSTER),
        ("/plain", CLUSTER),
        ("/unmarked", 1 << 24),
    ] {
        server.fail(path, [Fault::Cut(1000), Fault::Cut(0)]);
        let host = Host::new();
        let options = CloudOptions {
            connections: NonZeroUsize::MIN,
            piece: piece as u64,
            ..options()
        };
        let disk = pull_with(&server, path, &host, &options).unwrap();
        assert_is(&host, &disk, &content);
    }
    let ranges = server.ranges("/disk");
    assert_eq!(ranges[1..3], ["bytes=1000-65535", "bytes=1000-65535"]);
    assert_eq!(server.ranges("/plain").len(), 3);
    assert_eq!(server.ranges("/unmarked"), ["bytes=0-16777215"; 3]);
}

#[test]
fn a_file_that_changes_meanwhile_is_fetched_anew_and_never_joined() {
    let (old, new) = (qcow2(1, 10), qcow2(2, 12));
    let server = FileServer::start();
    server.put("/disk", &old);
    // As one that knows ranges, and as one that has forgotten them.
    server.put("/forgotten", &old);
    let marked = "\"0\"";
    for path in ["/disk", "/forgotten"] {
        server.fail(path, [Fault::Cut(5000), Fault::Change(new.clone())]);
        let host = Host::new();
        let disk = pull_with(&server, path, &host, &options()).unwrap();
        assert_is(&host, &disk, &new);
        assert_ne!(disk.etag.as_deref(), Some(marked));
    }
}

#[test]
fn a_busy_server_is_asked_again_when_it_says_so() {
    let server = FileServer::start();
    let content = qcow2(1, 2);
    server.put("/disk", &content);
    server.fail(
        "/disk",
        [
            Fault::Status(429, "Retry-After: 0\r\n".into()),
            Fault::Status(503, String::new()),
        ],
    );
    let (host, heard) = (Host::new(), Heard::default());
    pull(
        &url(&server, "/disk"),
        None,
        &options(),
        &host.store,
        &heard,
    )
    .unwrap();
    let heard = heard.0.into_inner().unwrap();
    let retries: Vec<_> = heard
        .iter()
        .filter(|line| line.starts_with("retry"))
        .collect();
    assert!(
        retries.len() == 2 && retries[0].contains("status 429"),
        "{retries:?}"
    );
}

#[test]
fn a_server_that_serves_one_connection_at_a_time_is_enough() {
    let server = FileServer::start();
    let content = qcow2(1, 10);
    server.put("/disk", &content);
    server.serve_at_most(1);
    let host = Host::new();
    let options = CloudOptions {
        retry: RetryPolicy {
            attempts: 1,
            ..options().retry
        },
        ..options()
    };
    let disk = pull_with(&server, "/disk", &host, &options).unwrap();
    assert_is(&host, &disk, &content);
}

#[test]
fn what_is_known_is_not_fetched_again_until_it_is_another() {
    let server = FileServer::start();
    server.put("/disk", &qcow2(1, 2));
    server.put("/dated", &qcow2(1, 2));
    server.mark("/dated", None, Some("Wed, 21 Oct 2015 07:28:00 GMT"));
    for path in ["/disk", "/dated"] {
        let host = Host::new();
        let disk = pull_with(&server, path, &host, &options()).unwrap();
        let known = Known {
            etag: disk.etag.clone(),
            last_modified: disk.last_modified.clone(),
            digest: disk.digest,
        };
        let again = || {
            pull(
                &url(&server, path),
                Some(&known),
                &options(),
                &host.store,
                &Silent,
            )
        };
        let before = server.asked().len();
        assert_eq!(again().unwrap(), Pulled::Unchanged);
        assert_eq!(server.asked().len(), before + 1);
        host.assert_nothing_staged();
        // What is recorded and not there is not known.
        fs::remove_file(host.store.disk_path(&disk.digest)).unwrap();
        assert_eq!(again().unwrap(), Pulled::Ready(disk));
        server.change(path, &qcow2(2, 2));
        server.mark(path, Some("\"9\""), None);
        let Pulled::Ready(changed) = again().unwrap() else {
            panic!("it has changed")
        };
        assert_is(&host, &changed, &qcow2(2, 2));
    }
}

#[test]
fn what_is_expected_and_here_is_not_asked_for() {
    let server = FileServer::start();
    let content = qcow2(1, 2);
    server.put("/disk", &content);
    let host = Host::new();
    let options = CloudOptions {
        expected: Some(Digest::of(&content)),
        ..options()
    };
    let disk = pull_with(&server, "/disk", &host, &options).unwrap();
    assert_is(&host, &disk, &content);
    let before = server.asked().len();
    let again = pull_with(&server, "/elsewhere", &host, &options).unwrap();
    assert_eq!(again.digest, disk.digest);
    assert_eq!(server.asked().len(), before);
}

#[test]
fn two_pulls_of_one_address_do_not_disturb_each_other() {
    let server = FileServer::start();
    let content = gzip(&qcow2(1, 10));
    server.put("/disk", &content);
    let host = Host::new();
    let pulled = std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    pull(
                        &url(&server, "/disk"),
                        None,
                        &options(),
                        &host.store,
                        &Silent,
                    )
                    .unwrap()
                })
            })
            .collect();
        let pulled = pulls.into_iter().map(|pull| pull.join().unwrap());
        pulled.collect::<Vec<_>>()
    });
    assert!(pulled.iter().all(|disk| *disk == pulled[0]), "{pulled:?}");
    assert_eq!(
        host.names("blobs"),
        [format!("{}.qcow2", Digest::of(&content).hex())]
    );
    host.assert_nothing_staged();
    let stored = fs::read(host.store.disk_path(&Digest::of(&content))).unwrap();
    assert!(stored == qcow2(1, 10));
}

#[test]
fn the_login_goes_where_the_address_says_and_nowhere_else() {
    let (first, second) = (FileServer::start(), FileServer::start());
    let content = qcow2(1, 3);
    first.put("/disk", &content);
    second.put("/disk", &content);
    let header = |place: String| format!("Location: {place}\r\n");
    first.put("/near", b"");
    first.put("/far", b"");
    let secret = "Basic bWU6czNjcjN0";
    for (path, place, server) in [
        ("/near", "/disk".to_owned(), &first),
        ("/far", second.url("/disk"), &second),
    ] {
        first.fail(path, [Fault::Status(302, header(place))]);
        let url = format!("http://me:s3cr3t@{}{path}", first.address);
        let host = Host::new();
        let pulled = pull(
            &url.parse().unwrap(),
            None,
            &options(),
            &host.store,
            &Silent,
        );
        assert!(matches!(pulled, Ok(Pulled::Ready(_))), "{pulled:?}");
        let asked = server
            .asked()
            .into_iter()
            .filter(|asked| asked.path == "/disk");
        let logins: Vec<_> = asked
            .map(|asked| asked.header("authorization").map(str::to_owned))
            .collect();
        assert!(logins.len() >= 8, "{logins:?}");
        let expected = (path == "/near").then(|| secret.to_owned());
        assert!(
            logins.iter().all(|login| *login == expected),
            "{path}: {logins:?}"
        );
    }
    assert!(
        second
            .asked()
            .iter()
            .all(|asked| asked.header("referer").is_none())
    );
}

#[test]
fn parts_come_from_where_the_first_was_led_and_an_address_that_expires_is_renewed() {
    let (front, back) = (FileServer::start(), FileServer::start());
    let content = qcow2(1, 8);
    front.put("/disk", b"");
    back.put("/signed-1", &content);
    back.put("/signed-2", &content);
    let lead = |path: &str| Fault::Status(307, format!("Location: {}\r\n", back.url(path)));
    front.fail("/disk", [lead("/signed-1"), lead("/signed-2")]);
    // The first part, and no more.
    back.fail(
        "/signed-1",
        [Fault::Less(CLUSTER), Fault::Status(403, String::new())],
    );
    let options = CloudOptions {
        connections: NonZeroUsize::MIN,
        ..options()
    };
    let host = Host::new();
    let disk = pull_with(&front, "/disk", &host, &options).unwrap();
    assert_is(&host, &disk, &content);
    assert_eq!(front.asked().len(), 2);
    assert_eq!(back.ranges("/signed-1").len(), 2);
    assert_eq!(back.ranges("/signed-2").len(), 12);
}

#[test]
fn a_pull_ends_at_once_when_it_is_cancelled() {
    let server = FileServer::start();
    server.put("/disk", &qcow2(1, 2));
    server.fail("/disk", [Fault::Stall(1000)]);
    let host = Host::new();
    let options = options();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            server.wait_for_request();
            options.cancel.cancel();
        });
        pull_with(&server, "/disk", &host, &options).unwrap_err()
    });
    assert!(error.is_cancelled(), "{error}");
}

#[test]
fn zeros_that_arrive_take_no_space() {
    let mut content = qcow2(1, 100);
    content[5 * CLUSTER..104 * CLUSTER].fill(0);
    let server = FileServer::start();
    server.put("/disk", &content);
    server.put_plain("/plain", &content, false);
    for path in ["/disk", "/plain"] {
        let host = Host::new();
        let disk = pull_with(&server, path, &host, &options()).unwrap();
        assert_is(&host, &disk, &content);
        assert!(!keeps_holes() || disk.size_on_disk < 20 * CLUSTER as u64);
    }
}

#[test]
fn an_import_reads_a_stream_as_it_comes() {
    /// Gives a few bytes at a time.
    struct Slow<'a>(&'a [u8], &'a Cell<usize>);
    impl Read for Slow<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            self.1.set(self.1.get() + 1);
            let count = self.0.len().min(to.len()).min(7777);
            self.0.read(&mut to[..count])
        }
    }
    let (host, reads, heard) = (Host::new(), Cell::new(0), Heard::default());
    let content = qcow2(1, 30);
    let total = Some(content.len() as u64);
    let slow = Slow(&content, &reads);
    let disk = import(&"it", slow, total, &options(), &host.store, &heard).unwrap();
    assert_is(&host, &disk, &content);
    assert!(reads.get() > 200);
    host.assert_nothing_staged();
    assert_eq!(
        heard.0.into_inner().unwrap()[0],
        format!("Reading {total:?}")
    );
}
