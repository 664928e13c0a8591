//! Frames of a guest, played by the test: it opens the TAP device as the VMM would.

use std::cell::Cell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::sys::{netns, tun};
use crate::units::Mac;

/// The virtio-net header that a TAP device with `IFF_VNET_HDR` expects unless told otherwise.
const VNET_HEADER: usize = 10;

/// Time for an answer before the question is asked again. A bridge forwards only some time after
/// its port has come up: the kernel tells it of the carrier from a work queue.
const ANSWER_LIMIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 250_000_000,
};

/// Enough questions for this machine, however busy: 20 s.
const MAX_QUESTIONS: usize = 80;

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];

/// The guest on the other side of a TAP device.
pub(super) struct Guest {
    queues: Vec<File>,
    mac: Mac,
    ip: Ipv4Addr,
    sent: Cell<u64>,
}

impl Guest {
    pub(super) fn of(record: &NetworkRecord, index: usize) -> Self {
        let nic = &record.nics[index];
        let queues = netns::run_in(&record.netns, || {
            (0..nic.queue_pairs)
                .map(|_| tun::attach(&nic.tap, nic.queue_pairs).unwrap())
                .collect()
        });
        Self {
            queues: queues.unwrap(),
            mac: nic.mac,
            ip: nic.address.unwrap().ip,
            sent: Cell::new(0),
        }
    }

    fn send(&self, to: [u8; 6], ethertype: [u8; 2], payload: &[u8]) {
        let header = [0; VNET_HEADER];
        let frame = [&header[..], &to, &self.mac.bytes(), &ethertype, payload].concat();
        let mut queue = &self.queues[0];
        assert_eq!(queue.write(&frame).unwrap(), frame.len());
        self.sent.set(self.sent.get() + 1);
    }

    /// The next frame that `wanted` accepts, on whichever queue; none when time is over.
    fn receive(&self, limit: &Timespec, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        loop {
            let mut fds: Vec<_> = self
                .queues
                .iter()
                .map(|queue| PollFd::new(queue, PollFlags::IN))
                .collect();
            if poll(&mut fds, Some(limit)).unwrap() == 0 {
                return None;
            }
            for mut queue in &self.queues {
                let mut frame = vec![0; 65_536];
                match queue.read(&mut frame) {
                    Ok(count) if wanted(&frame[VNET_HEADER..count]) => {
                        return Some(frame[VNET_HEADER..count].to_vec());
                    }
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
    }

    /// Asks once by ARP who has the gateway's address, and returns the answer.
    fn who_has_gateway(&self) -> Option<[u8; 6]> {
        let mut request = vec![0, 1, 8, 0, 6, 4, 0, 1];
        request.extend(self.mac.bytes());
        request.extend(self.ip.octets());
        request.extend([0; 6]);
        request.extend(GATEWAY.octets());
        self.send([0xff; 6], ETHERTYPE_ARP, &request);
        let answer = self.receive(&ANSWER_LIMIT, |frame| {
            frame.len() >= 42
                && frame[..6] == self.mac.bytes()
                && frame[12..14] == ETHERTYPE_ARP
                && frame[20..22] == [0, 2]
                && frame[28..32] == GATEWAY.octets()
        })?;
        Some(answer[22..28].try_into().unwrap())
    }

    /// Asserts that the gateway answers: frames cross both ways. Returns its MAC.
    pub(super) fn assert_connected(&self) -> [u8; 6] {
        let answer = (0..MAX_QUESTIONS).find_map(|_| self.who_has_gateway());
        answer.expect("the gateway did not answer ARP")
    }

    /// Sends an ICMP echo request in an IP packet of `size` bytes; returns the size of the answer.
    fn ping(&self, gateway: [u8; 6], size: u16) -> usize {
        let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
        icmp.resize(usize::from(size) - 20, 0xa5);
        let sum = checksum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let mut ip = vec![0x45, 0];
        ip.extend(size.to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, 1, 0, 0]);
        ip.extend(self.ip.octets());
        ip.extend(GATEWAY.octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let packet = [ip, icmp].concat();
        let answer = (0..MAX_QUESTIONS).find_map(|_| {
            self.send(gateway, ETHERTYPE_IPV4, &packet);
            self.receive(&ANSWER_LIMIT, |frame| {
                frame.len() > 38 && frame[12..14] == ETHERTYPE_IPV4 && frame[34] == 0
            })
        });
        answer.expect("no echo reply").len() - 14
    }
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

#[test]
fn root_frames_cross_between_tap_and_bridge_both_ways_at_the_full_mtu() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 1);
        let record = host.setup(&planned).unwrap();
        assert_eq!(record.nics[0].mtu, 1450);
        let guest = Guest::of(&record, 0);
        let gateway = guest.assert_connected();
        assert_eq!(guest.ping(gateway, 1450), 1450);
    });
}

#[test]
fn root_two_nics_of_four_queue_pairs_each_carry_their_own_frames() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 2, 4);
        let mut saved = Vec::new();
        let record = setup(&host.plugins, &planned, &mut |record| {
            saved.push(record.nics.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(saved, [1, 2]);
        let [first, second] = [0, 1].map(|i| record.nics[i].clone());
        assert_eq!(
            (second.ifname.as_str(), second.tap.as_str()),
            ("eth1", "tap1")
        );
        assert_ne!(first.mac, second.mac);
        assert_ne!(first.address, second.address);
        let guests = [0, 1].map(|i| Guest::of(&record, i));
        for guest in &guests {
            guest.assert_connected();
        }
        teardown(&host.plugins, &record).unwrap();
        host.assert_clean(&record);
    });
}

#[test]
fn root_the_host_says_nothing_on_the_wire_of_the_guest() {
    on_a_host(|host| {
        let mut bridge = host.bridge();
        bridge["ipam"]["ranges"] =
            json!([[{"subnet": "10.77.0.0/16"}], [{"subnet": "fd00:77::/64"}]]);
        let planned = planned(&list(json!([bridge])), 1, 1);
        let record = host.setup(&planned).unwrap();
        for device in ["eth0", "tap0"] {
            let addresses = inside(&record, "ip", &["-o", "addr", "show", "dev", device]);
            assert_eq!(addresses, "", "{device}");
            let parameter = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
            let off = netns::run_in(&record.netns, || fs::read_to_string(parameter).unwrap());
            assert_eq!(off.unwrap(), "1\n", "{device}");
        }
        // CNI may have announced the addresses while they were on the interface, before the join;
        // since then only the guest's own frames have left.
        let before = sent_by_eth0(&record);
        let guest = Guest::of(&record, 0);
        guest.assert_connected();
        assert_eq!(sent_by_eth0(&record) - before, guest.sent.get());
    });
}

fn sent_by_eth0(record: &NetworkRecord) -> u64 {
    let shown = inside(record, "ip", &["-s", "-j", "link", "show", "dev", "eth0"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn root_a_quiet_network_carries_nothing_until_it_is_woken() {
    on_a_host(|host| {
        let planned = planned(&list(json!([host.bridge()])), 1, 2);
        let record = host.setup(&planned).unwrap();
        quiesce(&record).unwrap();
        assert!(is_intact(&record).unwrap());
        let guest = Guest::of(&record, 0);
        assert_eq!(guest.who_has_gateway(), None);
        wake(&record).unwrap();
        guest.assert_connected();
    });
}
