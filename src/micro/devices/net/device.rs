//! The interface as its driver finds it: features, configuration, activation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Once};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR,
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::control::Control;
use super::persist::{Settings, State};
use super::queue::Pair;
use super::receive::{Receiver, Room};
use super::tap::{NetError, Tap};
use super::transmit::Sender;
use super::{ETHERNET_HEADER, HEADER, MAX_FRAME};
use crate::micro::bus::lock;
use crate::micro::devices::DeviceState;
use crate::micro::notice::{Fault, Problem};
use crate::micro::virtio::device::{Activation, ActiveQueue, Device, Placed};
use crate::vm::spec::{Nic, QUEUE_SIZE};

/// Queues that the kernel lets a TAP device have (`MAX_TAP_QUEUES`).
const MAX_QUEUE_PAIRS: u16 = 256;

/// The least that IPv4 allows, and virtio (1.2, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// The control queue; no driver has more than a few commands under way.
const CONTROL_SIZE: u16 = 64;

/// `VIRTIO_NET_S_LINK_UP`, in the width of its field.
const LINK_UP: u16 = 1;

/// A VLAN tag, by which a frame may exceed the MTU.
const VLAN_TAG: usize = 4;

/// What the host may leave undone in frames for the guest. UDP fragmentation offload is not among
/// it: Linux has given it up.
pub(super) const GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// Frames for the guest may be larger than its MTU.
const GUEST_SEGMENTS: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;

const FEATURES: u64 = GUEST_OFFLOADS
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_NET_F_CTRL_RX
    | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
    | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Whether this engine can have such an interface.
///
/// # Errors
/// It cannot: the rest of a sentence about the interface.
pub(crate) fn check(nic: &Nic) -> Result<(), String> {
    if !(1..=MAX_QUEUE_PAIRS).contains(&nic.queue_pairs) {
        return Err(format!(
            "{} has {} pairs of queues, which must be 1 to {MAX_QUEUE_PAIRS}",
            nic.tap, nic.queue_pairs
        ));
    }
    if nic.mtu < MIN_MTU {
        return Err(format!(
            "{} has an MTU of {}, which must be {MIN_MTU} or more",
            nic.tap, nic.mtu
        ));
    }
    Ok(())
}

/// A network interface.
#[derive(Debug)]
pub(crate) struct Net {
    name: String,
    nic: Nic,
    sizes: Vec<u16>,
    pub(super) shared: Arc<Shared>,
    /// What the first activation takes up, after a restore.
    restored: Option<Settings>,
}

/// What the registers and the control queue share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) tap: Tap,
    /// As the driver reads it; one that it sets itself lasts until it resets the device.
    mac: Mutex<[u8; 6]>,
    /// While active.
    pub(super) settings: Mutex<Option<Settings>>,
    /// That the kernel refused a command: the driver may repeat it as often as it likes.
    pub(super) complaint: Once,
}

impl Shared {
    pub(super) fn set_mac(&self, mac: [u8; 6]) {
        *lock(&self.mac) = mac;
    }
}

impl Net {
    /// Opens the TAP device of `nic`, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// The device is not there, is in use or differs, or `saved` is that of another interface.
    pub(crate) fn open(nic: &Nic, saved: Option<&State>) -> Result<Self, NetError> {
        let restored = saved.and_then(|state| state.0);
        if let Some(settings) = restored
            && !(1..=nic.queue_pairs).contains(&settings.pairs)
        {
            return Err(NetError::Saved {
                tap: nic.tap.clone(),
                saved: settings.pairs,
                pairs: nic.queue_pairs,
            });
        }
        let tap = Tap::open(&nic.tap, nic.queue_pairs)?;
        Ok(Self::new(nic, tap, restored))
    }

    /// The interface on `tap`, which has as many queues as `nic` pairs.
    pub(super) fn new(nic: &Nic, tap: Tap, restored: Option<Settings>) -> Self {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(nic.queue_pairs)];
        sizes.push(CONTROL_SIZE);
        // Without `VIRTIO_NET_F_MQ` the control queue follows the first pair: 64 would do there, too.
        Self {
            name: format!("nic {}", nic.tap),
            nic: nic.clone(),
            sizes,
            shared: Arc::new(Shared {
                tap,
                mac: Mutex::new(nic.mac.bytes()),
                settings: Mutex::new(None),
                complaint: Once::new(),
            }),
            restored,
        }
    }

    /// Sets the TAP device for a driver that accepted `features`.
    fn set_up(&mut self, features: u64) -> Result<(), Fault> {
        let fresh = Settings::initial(features);
        let mut settings = self.restored.take().unwrap_or(fresh);
        settings.offloads &= features;
        let tap = &self.shared.tap;
        tap.set_offloads(settings.offloads)
            .and_then(|()| tap.set_pairs(settings.pairs))
            .map_err(|source| self.fault("set up its TAP device", source))?;
        *lock(&self.shared.settings) = Some(settings);
        Ok(())
    }

    fn fault(&self, operation: &'static str, source: std::io::Error) -> Fault {
        let device = self.name.clone();
        let problem = Problem::Host { operation, source };
        Fault { device, problem }
    }

    /// Room that the driver's chains must have for a frame.
    fn room(&self, features: u64) -> Room {
        if features & (1 << VIRTIO_NET_F_MRG_RXBUF) == 0 {
            Room::OneChain
        } else if features & GUEST_SEGMENTS != 0 {
            Room::Bytes(MAX_FRAME)
        } else {
            Room::Bytes(HEADER + ETHERNET_HEADER + VLAN_TAG + usize::from(self.nic.mtu))
        }
    }

    /// The handlers of the queues that the driver has made ready.
    fn handlers(&self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            notices,
        } = activation;
        let several = features & (1 << VIRTIO_NET_F_MQ) != 0;
        let pairs = if several { self.nic.queue_pairs } else { 1 };
        let mut queues: BTreeMap<u16, ActiveQueue> = queues
            .into_iter()
            .map(|active| (active.index, active))
            .collect();
        let (mut placed, mut wake) = (Vec::new(), Vec::new());
        for (pair, tap) in (0..pairs).zip(self.shared.tap.queues()) {
            let receive = queues.remove(&(2 * pair));
            if let Some(active) = &receive {
                wake.push(self.clone_kick(active)?);
            }
            let receiver = receive.map(|active| {
                let (memory, interrupt) = (memory.clone(), Arc::clone(&interrupt));
                let room = self.room(features);
                Receiver::new(active, memory, interrupt, Arc::clone(tap), room)
            });
            let sender = queues.remove(&(2 * pair + 1)).map(|active| {
                let (memory, interrupt) = (memory.clone(), Arc::clone(&interrupt));
                Sender::new(active, memory, interrupt, Arc::clone(tap))
            });
            if receiver.is_none() && sender.is_none() {
                continue;
            }
            let (device, tap) = (self.name.clone(), Arc::clone(tap));
            placed.push(Placed {
                lane: usize::from(pair),
                handler: Box::new(Pair::new(device, receiver, sender, tap, notices.clone())),
            });
        }
        if let Some(active) = queues.remove(&(2 * pairs)) {
            let control = Control {
                device: self.name.clone(),
                told: active.queue.next_used(),
                active,
                memory,
                features,
                shared: Arc::clone(&self.shared),
                wake,
                interrupt,
                notices,
            };
            placed.push(Placed {
                lane: 0,
                handler: Box::new(control),
            });
        }
        Ok(placed)
    }

    fn clone_kick(&self, active: &ActiveQueue) -> Result<EventFd, Fault> {
        let kick = active.kick.try_clone();
        kick.map_err(|source| self.fault("open a descriptor for it", source))
    }
}

impl Device for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let several = u64::from(self.nic.queue_pairs > 1);
        FEATURES | several << VIRTIO_NET_F_MQ
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// virtio 1.2, 5.1.4: struct virtio_net_config.
    fn config(&self) -> Vec<u8> {
        let mac = *lock(&self.shared.mac);
        let rest = [LINK_UP, self.nic.queue_pairs, self.nic.mtu].map(u16::to_le_bytes);
        [&mac[..], rest.as_flattened()].concat()
    }

    fn activate(&mut self, activation: Activation) -> Result<Vec<Placed>, Fault> {
        self.set_up(activation.features)?;
        self.handlers(activation)
    }

    fn reset(&mut self) {
        self.restored = None;
        self.shared.set_mac(self.nic.mac.bytes());
        *lock(&self.shared.settings) = None;
        let tap = &self.shared.tap;
        if let Err(error) = tap.set_offloads(0).and_then(|()| tap.set_pairs(1)) {
            // The next activation does the same, or says why it cannot.
            tracing::debug!(device = self.name, %error, "cannot reset the TAP device");
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(State(self.restored.or(*lock(&self.shared.settings))))
    }
}
