//! Pulls from a server that goes wrong on demand, and imports of what real tools write.

mod contents;
mod faults;
mod server;
mod tls;
mod transfers;

use std::fs;
use std::time::Duration;

pub(super) use crate::image::fixture::{Heard, Host, chain, gzip, keeps_holes, noise, tar_of};

use super::*;
use crate::image::progress::Silent;
use server::FileServer;

/// Bytes of a cluster of the images that are made here.
const CLUSTER: usize = 64 << 10;

/// Small pieces, and fast retries, so that failing tests fail soon.
fn options() -> CloudOptions {
    CloudOptions {
        piece: CLUSTER as u64,
        retry: RetryPolicy {
            attempts: 5,
            first_delay: Duration::from_millis(2),
            max_delay: Duration::from_millis(20),
            max_retry_after: Duration::from_secs(2),
        },
        ..CloudOptions::default()
    }
}

/// A qcow2 image of version 3 with so many clusters of noise, by QEMU's `docs/interop/qcow2.txt`: header,
/// refcount table, refcount block, L1, L2, data.
fn qcow2(seed: u64, clusters: usize) -> Vec<u8> {
    let mut image = vec![0; 5 * CLUSTER];
    let cluster = |number: usize| (number * CLUSTER) as u64;
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &16u32.to_be_bytes());
    put(24, &cluster(clusters).to_be_bytes());
    put(36, &1u32.to_be_bytes());
    put(40, &cluster(3).to_be_bytes());
    put(48, &cluster(1).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &cluster(2).to_be_bytes());
    let copied = 1 << 63;
    put(3 * CLUSTER, &(cluster(4) | copied).to_be_bytes());
    for used in 0..5 + clusters {
        put(2 * CLUSTER + 2 * used, &1u16.to_be_bytes());
    }
    for data in 0..clusters {
        let entry = (cluster(5 + data) | copied).to_be_bytes();
        put(4 * CLUSTER + 8 * data, &entry);
    }
    image.extend(noise(seed, clusters * CLUSTER));
    image
}

/// A raw disk with a partition table of the old kind, as good as empty.
fn raw(sectors: usize) -> Vec<u8> {
    let mut disk = vec![0; sectors * 512];
    disk[510..512].copy_from_slice(b"\x55\xaa");
    disk
}

fn url(server: &FileServer, path: &str) -> CloudUrl {
    server.url(path).parse().unwrap()
}

/// Pulls, and looks that no work files are left; if it fails, that nothing is.
fn pull_with(
    server: &FileServer,
    path: &str,
    host: &Host,
    options: &CloudOptions,
) -> Result<ReadyDisk, CloudError> {
    let pulled = pull(&url(server, path), None, options, &host.store, &Silent);
    host.assert_nothing_staged();
    if pulled.is_err() {
        host.assert_nothing_published();
    }
    pulled.map(|pulled| match pulled {
        Pulled::Ready(disk) => disk,
        Pulled::Unchanged => panic!("nothing was known"),
    })
}

/// Pulls what is no disk, and gives the sentences that say why not.
fn refusal(server: &FileServer, path: &str, options: &CloudOptions) -> String {
    let host = Host::new();
    let error = pull_with(server, path, &host, options).unwrap_err();
    chain(&error).replace(&server.url(""), "URL")
}

/// That `disk` is `content`, which was qcow2 already.
fn assert_is(host: &Host, disk: &ReadyDisk, content: &[u8]) {
    assert_eq!(disk.digest, Digest::of(content));
    let stored = fs::read(host.store.disk_path(&disk.digest)).unwrap();
    assert!(stored == content, "what is stored is not what was served");
}
