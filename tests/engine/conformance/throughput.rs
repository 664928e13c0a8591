//! How fast a disk and a NIC of a guest are, as seen from the host.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::SOON;
use super::devices::NIC_UP;
use super::sample::Sample;
use super::spec::HOST;
use super::vm::Vm;

/// What is written to a disk, and read from it: some seconds under emulation.
pub(crate) const DISK_BYTES: u64 = 64 << 20;

/// What goes through a NIC.
const TCP_BYTES: u64 = 32 << 20;

/// Writes the disk and lets it be flushed, then reads it, with nothing of it in the guest's cache.
pub(crate) fn disk(sample: &Sample, vm: &mut Vm) {
    let mib = DISK_BYTES >> 20;
    let write = format!("dd if=/dev/zero of=/dev/vda bs=1M count={mib} conv=fsync 2>/dev/null");
    // The first time, the host finds room for it.
    assert_eq!(vm.console.run(&write), "");
    let begin = Instant::now();
    assert_eq!(vm.console.run(&write), "");
    sample.report_rate("disk-write", DISK_BYTES, begin);
    vm.console.run("echo 3 > /proc/sys/vm/drop_caches");
    let begin = Instant::now();
    let read = "dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null && echo read";
    assert_eq!(vm.console.run(read), "read");
    sample.report_rate("disk-read", DISK_BYTES, begin);
}

/// Sends bytes to the guest, and takes as many from it.
pub(crate) fn tcp(sample: &Sample, vm: &mut Vm) {
    let mib = TCP_BYTES >> 20;
    vm.console.run(NIC_UP);
    vm.console.run(&format!(
        "mount -t tmpfs -o size=50% t /fill; dd if=/dev/zero of=/fill/zero bs=1M count={mib} 2>/dev/null"
    ));
    let listener = TcpListener::bind((HOST, 0)).expect("the TAP has this address");
    let port = listener.local_addr().expect("it is bound").port();
    let mut bytes = vec![0; usize::try_from(TCP_BYTES).expect("it fits memory")];

    vm.console
        .enter(&format!("nc {HOST} {port} > /dev/null; echo r''eceived"));
    let mut stream = accept(&listener);
    let begin = Instant::now();
    stream.write_all(&bytes).expect("the guest receives");
    drop(stream);
    vm.console.until("received");
    sample.report_rate("tcp-in", TCP_BYTES, begin);

    vm.console
        .enter(&format!("nc {HOST} {port} < /fill/zero; echo s''ent"));
    let mut stream = accept(&listener);
    let begin = Instant::now();
    stream.read_exact(&mut bytes).expect("the guest sends");
    sample.report_rate("tcp-out", TCP_BYTES, begin);
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("the guest calls");
    stream.set_read_timeout(Some(SOON)).expect("sockets can");
    stream.set_write_timeout(Some(SOON)).expect("sockets can");
    stream
}
