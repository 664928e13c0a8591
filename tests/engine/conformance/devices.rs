//! What a guest finds in its VM, and that it works.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use cocoon::units::ByteSize;
use cocoon::vmm::engine::{Event, StopReason};

use super::spec::{HOST, Tap, disk, nic, noise, run, text};
use super::vm::{Vm, kib};
use super::{Case, Lab, Needs, SOON, figure};

/// The cases, quickest first.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "four_cpus_disks_and_nics_are_what_the_spec_says",
        needs: Needs::Taps,
        body: four_cpus_disks_and_nics_are_what_the_spec_says,
    },
    Case {
        name: "memory_goes_on_beyond_the_hole",
        needs: Needs::Guest,
        body: memory_goes_on_beyond_the_hole,
    },
    Case {
        name: "what_the_guest_wrote_outlives_its_reboot",
        needs: Needs::Guest,
        body: what_the_guest_wrote_outlives_its_reboot,
    },
    Case {
        name: "a_file_system_of_the_guest_is_sound",
        needs: Needs::Guest,
        body: a_file_system_of_the_guest_is_sound,
    },
    Case {
        name: "tcp_flows_both_ways",
        needs: Needs::Taps,
        body: tcp_flows_both_ways,
    },
    Case {
        name: "iperf3_measures_both_ways",
        needs: Needs::Taps,
        body: iperf3_measures_both_ways,
    },
    Case {
        name: "memory_that_the_guest_frees_goes_back_to_the_host",
        needs: Needs::Guest,
        body: memory_that_the_guest_frees_goes_back_to_the_host,
    },
];

/// The guest's address.
const GUEST: &str = "10.11.12.2";

/// Command of the guest that gives its NIC that address.
pub(crate) const NIC_UP: &str = "ip a add 10.11.12.2/24 dev eth0; ip link set eth0 up";

fn four_cpus_disks_and_nics_are_what_the_spec_says(lab: &Lab) {
    let mut spec = lab.guest(4);
    let layer = lab.image("layer.img", b"lowest layer", 1 << 20);
    let overlay = lab.image("overlay.img", b"", 1 << 20);
    spec.disks.push(disk(&layer, "cocoon-layer0", 4));
    spec.disks[0].readonly = true;
    spec.disks.push(disk(&overlay, "cocoon-cow", 4));
    let _tap = Tap::new("tap0", 4);
    spec.nics.push(nic("tap0", 4));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP 4");
    let cases = [
        ("cat /sys/block/vda/serial; echo", "cocoon-layer0"),
        ("cat /sys/block/vdb/serial; echo", "cocoon-cow"),
        ("head -c 12 /dev/vda; echo", "lowest layer"),
        ("cat /sys/block/vda/ro", "1"),
        ("cat /sys/block/vdb/ro", "0"),
        ("ls /sys/block/vdb/mq | wc -w", "4"),
        ("cat /sys/class/net/eth0/address", "02:00:00:00:00:07"),
        ("cat /sys/class/net/eth0/mtu", "1450"),
        ("ls -d /sys/class/net/eth0/queues/?x-* | wc -w", "8"),
        (NIC_UP, ""),
        ("printf written | dd of=/dev/vdb conv=fsync 2>/dev/null", ""),
        ("cat /sys/class/misc/hw_random/rng_current", "virtio_rng.0"),
    ];
    for (line, answer) in cases {
        assert_eq!(vm.console.run(line), answer, "{line}");
    }
    let ping = vm.console.run(&format!("ping -c 1 -W 60 {HOST}"));
    assert!(ping.contains(" 0% packet loss"), "{ping}");
    let info = vm.machine.info().expect("a running VM has an info");
    assert_eq!(info["state"], "Running");
    vm.is_ended();
    let read = fs::read(overlay).expect("the overlay is there");
    assert_eq!(&read[..7], b"written");
    let read = fs::read(layer).expect("the layer is there");
    assert_eq!(&read[..12], b"lowest layer");
}

/// Pages of 4 KiB that are free in the zone above 4 GiB.
fn free_pages_above_4_gib(vm: &mut Vm) -> u64 {
    let said = vm.console.run(
        "awk '/^Node/ { normal = /Normal/ } normal && /pages free/ { print $3 }' /proc/zoneinfo",
    );
    said.parse().unwrap_or_else(|_| panic!("no figure: {said}"))
}

fn memory_goes_on_beyond_the_hole(lab: &Lab) {
    const NOISE_BYTES: usize = 64 << 20;
    let mut spec = lab.guest(1);
    spec.memory.size = ByteSize::from_gib(4);
    // All of it is to be the guest's.
    spec.memory.balloon = None;
    let image = lab.image("noise.img", &noise(1, NOISE_BYTES), NOISE_BYTES as u64);
    spec.disks.push(disk(&image, "noise", 1));
    spec.disks[0].readonly = true;
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP");
    let total = vm
        .console
        .run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
    let total: u64 = total.parse().expect("a figure");
    assert!((3_900_000..4_194_304).contains(&total), "{total} KiB");
    let map = vm.console.run("grep '^100000000-.*System RAM' /proc/iomem");
    assert!(!map.is_empty(), "no memory from 4 GiB on");
    let before = free_pages_above_4_gib(&mut vm);
    vm.console
        .run("mount -t tmpfs -o size=1G t /fill; cp /dev/vda /fill/noise");
    let after = free_pages_above_4_gib(&mut vm);
    assert!(before - after >= 64 << 8, "{before} pages, then {after}");
    vm.console.run("echo 3 > /proc/sys/vm/drop_caches");
    assert_eq!(
        vm.console.run("cmp /dev/vda /fill/noise && echo same"),
        "same"
    );
    vm.is_ended();
}

fn what_the_guest_wrote_outlives_its_reboot(lab: &Lab) {
    const BYTES: usize = 16 << 20;
    let mut spec = lab.guest(1);
    let noise = noise(2, BYTES);
    let from = lab.image("from.img", &noise, BYTES as u64);
    let to = lab.image("to.img", b"", BYTES as u64);
    spec.disks.push(disk(&from, "from", 1));
    spec.disks[0].readonly = true;
    spec.disks.push(disk(&to, "to", 1));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP");
    let begin = Instant::now();
    let said = vm
        .console
        .run("dd if=/dev/vda of=/dev/vdb bs=1M conv=fsync 2>/dev/null && echo ok");
    assert_eq!(said, "ok");
    rate("disk copy and sync", BYTES, begin);
    vm.console.enter("reboot -f");
    if vm.console.until_or_hung_up("GUEST UP") {
        vm.reopen_console();
    }
    assert_eq!(vm.events.recv_timeout(SOON), Ok(Event::Rebooted));
    vm.console.until("GUEST UP");
    let begin = Instant::now();
    assert_eq!(vm.console.run("cmp /dev/vda /dev/vdb && echo same"), "same");
    rate("disk read", 2 * BYTES, begin);
    vm.console.enter("poweroff -f");
    vm.ends_by(StopReason::GuestPowerOff);
    assert!(
        fs::read(to).expect("it is there") == noise,
        "the host reads the same"
    );
}

fn a_file_system_of_the_guest_is_sound(lab: &Lab) {
    let mut spec = lab.guest(2);
    let image = lab.image("fs.img", b"", 64 << 20);
    run("mkfs.ext4", &["-q", text(&image)]);
    spec.disks.push(disk(&image, "fs", 2));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP");
    let work = "mount -o discard /dev/vda /fill && cp -r /bin /fill/a && cp -r /fill/a /fill/b && \
        rm -r /fill/a && sync && diff -r /bin /fill/b && umount /fill && echo ok";
    assert_eq!(vm.console.run(work), "ok");
    vm.console.enter("poweroff -f");
    vm.ends_by(StopReason::GuestPowerOff);
    run("e2fsck", &["-fn", text(&image)]);
}

fn rate(what: &str, bytes: usize, begin: Instant) {
    let mib = bytes as f64 / f64::from(1 << 20);
    let rate = mib / begin.elapsed().as_secs_f64();
    figure(&format!("RATE {what} {rate:.1} MiB/s"));
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("the guest calls");
    stream.set_read_timeout(Some(SOON)).expect("sockets can");
    stream.set_write_timeout(Some(SOON)).expect("sockets can");
    stream
}

fn tcp_flows_both_ways(lab: &Lab) {
    const BYTES: usize = 8 << 20;
    let _tap = Tap::new("tap0", 1);
    let mut spec = lab.guest(1);
    spec.memory.size = ByteSize::from_mib(512);
    spec.nics.push(nic("tap0", 1));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP");
    vm.console.run(NIC_UP);
    vm.console.run("mount -t tmpfs -o size=80% t /fill");
    let noise = noise(3, BYTES);
    let listener = TcpListener::bind((HOST, 0)).expect("the TAP has this address");
    let port = listener.local_addr().expect("it is bound").port();

    vm.console
        .enter(&format!("nc {HOST} {port} > /fill/noise; echo r''eceived"));
    let mut stream = accept(&listener);
    let begin = Instant::now();
    stream.write_all(&noise).expect("the guest receives");
    drop(stream);
    vm.console.until("received");
    rate("TCP to the guest", BYTES, begin);

    vm.console
        .enter(&format!("nc {HOST} {port} < /fill/noise; echo s''ent"));
    let mut stream = accept(&listener);
    let begin = Instant::now();
    let mut back = vec![0; BYTES];
    stream.read_exact(&mut back).expect("the guest sends");
    rate("TCP from the guest", BYTES, begin);
    assert!(back == noise, "what comes back is what was sent");
    drop(stream);
    vm.is_ended();
}

/// The host's iperf3 with its libraries, as a file system for the guest.
fn iperf3(lab: &Lab) -> PathBuf {
    const PROGRAM: &str = "/usr/bin/iperf3";
    let tree = lab.make_folder("iperf3");
    let libraries = run("ldd", &[PROGRAM]);
    let libraries = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for file in libraries.chain([PROGRAM]) {
        let copy = tree.join(&file[1..]);
        fs::create_dir_all(copy.parent().expect("it has a folder")).expect("there is room");
        run("cp", &["--dereference", file, text(&copy)]);
    }
    for folder in ["tmp", "dev"] {
        fs::create_dir(tree.join(folder)).expect("there is room");
    }
    let image = lab.image("iperf3.img", b"", 64 << 20);
    run("mkfs.ext4", &["-q", "-d", text(&tree), text(&image)]);
    image
}

fn iperf3_measures_both_ways(lab: &Lab) {
    let _tap = Tap::new("tap0", 2);
    let mut spec = lab.guest(2);
    spec.nics.push(nic("tap0", 2));
    spec.disks.push(disk(&iperf3(lab), "iperf3", 2));
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP");
    vm.console.run(NIC_UP);
    let server = "mount /dev/vda /fill && mount -t devtmpfs dev /fill/dev && chroot /fill /usr/bin/iperf3 --server --daemon && \
        until netstat -ltn | grep -q :5201; do sleep 0.2; done; echo listens";
    assert_eq!(vm.console.run(server), "listens");
    for (direction, way) in [("to", &[][..]), ("from", &["--reverse"])] {
        let client = ["--client", GUEST, "--time", "4", "--json"];
        let said = run("iperf3", &[&client, way].concat());
        let said: serde_json::Value = serde_json::from_str(&said).expect("it is JSON");
        let bits = said["end"]["sum_received"]["bits_per_second"].as_f64();
        let bits = bits.unwrap_or_else(|| panic!("no rate in {said:#}"));
        assert!(bits > 0.0, "{said:#}");
        figure(&format!(
            "RATE iperf3 {direction} the guest {:.1} Mbit/s",
            bits / 1e6
        ));
    }
    vm.is_ended();
}

fn memory_that_the_guest_frees_goes_back_to_the_host(lab: &Lab) {
    const FILL_KIB: u64 = 256 << 10;
    let mut spec = lab.guest(1);
    spec.memory.size = ByteSize::from_mib(768);
    let mut vm = lab.boot(spec);
    vm.console.until("GUEST UP");
    vm.console.run("mount -t tmpfs -o size=80% t /fill");
    // While the balloon is filled, its pages would lie scattered between those of the file; and only
    // pieces of 2 MiB are reported.
    vm.console
        .run("until grep -q 'balloon_inflate 16384' /proc/vmstat; do sleep 0.2; done");
    let before = kib("VmRSS:");
    vm.console
        .run("dd if=/dev/zero of=/fill/zero bs=1M count=256 2>/dev/null");
    let full = kib("VmRSS:");
    assert!(
        full >= before + FILL_KIB / 8 * 7,
        "{before} KiB, then {full}"
    );
    vm.console.run("rm /fill/zero");
    let begin = Instant::now();
    // The guest reports free pages two seconds after they were freed; nobody is told.
    while kib("VmRSS:") > full - FILL_KIB / 8 * 7 {
        let now = kib("VmRSS:");
        assert!(
            begin.elapsed() < SOON,
            "{before} KiB, {full} KiB, still {now} KiB:\n{}",
            vm.console.run("cat /proc/buddyinfo")
        );
        thread::sleep(Duration::from_millis(100));
    }
    let millis = begin.elapsed().as_millis();
    figure(&format!("TIME 256 MiB back with the host {millis} ms"));
    assert_eq!(vm.console.run("echo a''live"), "alive");
    vm.is_ended();
}
