//! I/O threads: each serves the handlers that were put on it.
//!
//! ```text
//!             ┌── lane 0 (thread `io0`): queue 0 of every device ──┐ epoll
//!  Lanes ─────┼── lane 1 (thread `io1`): queue 1 of every device   │ MutEventSubscriber::process
//!    call ────┴── …                                                ┘
//!    park     the thread takes no events, only calls, until `unpark`: nothing touches guest memory
//! ```
//! Invariant: a handler is touched by its lane's thread alone.

use std::fmt::Debug;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use virtio_queue::QueueState;

use super::bus::lock;
use super::notice::Fault;
use super::virtio::device::QueueHandler;
use crate::sys::thread::STACK_BYTES;

/// What a lane serves.
pub(crate) type Handler = Box<dyn QueueHandler>;

/// Access to a lane's handlers, on its thread.
pub(crate) type Ops<'a> = dyn SubscriberOps<Subscriber = Handler> + 'a;

type Call = Box<dyn FnOnce(&mut Ops<'_>) + Send>;

/// What a lane's thread does before its first event, such as to confine itself.
pub(crate) type Prologue = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A failure of a lane.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    /// No thread or no descriptor.
    #[error("cannot start I/O thread {lane}")]
    Start {
        /// Its number.
        lane: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread is gone.
    #[error("I/O thread {lane} does not answer")]
    Gone {
        /// Its number.
        lane: usize,
    },
}

/// All lanes of a VM. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Lanes(Vec<Lane>);

#[derive(Debug)]
struct Lane {
    number: usize,
    endpoint: RemoteEndpoint<Handler>,
    /// Calls for the thread while it is parked.
    parked: Mutex<Option<Sender<Call>>>,
    thread: Option<JoinHandle<()>>,
}

/// A handler's place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    lane: usize,
    subscriber: SubscriberId,
}

impl Lanes {
    /// Starts `count` lanes, at least one.
    ///
    /// # Errors
    /// The process has no thread or descriptor left.
    pub(crate) fn start(count: usize, prologue: &Prologue) -> Result<Self, LaneError> {
        let lanes = (0..count.max(1)).map(|number| Lane::start(number, Arc::clone(prologue)));
        lanes.collect::<Result<_, _>>().map(Self)
    }

    /// Puts a handler on lane `lane`, counted around.
    ///
    /// # Errors
    /// The lane is gone.
    pub(crate) fn add(&self, lane: usize, handler: Handler) -> Result<Place, LaneError> {
        let lane = lane % self.0.len();
        let subscriber = self.0[lane].call(move |ops| ops.add_subscriber(handler))?;
        Ok(Place { lane, subscriber })
    }

    /// Puts what serves no queue on lane `lane`, counted around, until the lanes end.
    ///
    /// # Errors
    /// The lane is gone.
    pub(crate) fn watch(
        &self,
        lane: usize,
        watcher: impl MutEventSubscriber + Send + Debug + 'static,
    ) -> Result<(), LaneError> {
        self.add(lane, Box::new(Queueless(watcher))).map(drop)
    }

    /// Takes a handler off its lane.
    ///
    /// # Errors
    /// The lane is gone.
    pub(crate) fn remove(&self, place: Place) -> Result<Option<Handler>, LaneError> {
        self.0[place.lane].call(move |ops| ops.remove_subscriber(place.subscriber).ok())
    }

    /// Lets `f` work on a handler, on its lane.
    ///
    /// # Errors
    /// The lane is gone.
    pub(crate) fn with<T: Send + 'static>(
        &self,
        place: Place,
        f: impl FnOnce(&mut Handler) -> T + Send + 'static,
    ) -> Result<Option<T>, LaneError> {
        self.0[place.lane].call(move |ops| ops.subscriber_mut(place.subscriber).ok().map(f))
    }

    /// Stops taking events, on all lanes.
    ///
    /// # Errors
    /// A lane is gone.
    pub(crate) fn park(&self) -> Result<(), LaneError> {
        self.0.iter().try_for_each(Lane::park)
    }

    /// Goes on.
    pub(crate) fn unpark(&self) {
        for lane in &self.0 {
            lock(&lane.parked).take();
        }
    }
}

/// What waits for events and serves no queue, among those that do.
#[derive(Debug)]
struct Queueless<W>(W);

impl<W: MutEventSubscriber> MutEventSubscriber for Queueless<W> {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.0.process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.0.init(ops);
    }
}

impl<W: MutEventSubscriber + Send + Debug> QueueHandler for Queueless<W> {
    fn quiesce(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    fn queues(&self) -> Vec<(u16, QueueState)> {
        Vec::new()
    }
}

impl Lane {
    fn start(number: usize, prologue: Prologue) -> Result<Self, LaneError> {
        let failed = |source| LaneError::Start {
            lane: number,
            source,
        };
        let (started, endpoint) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("io{number}"))
            .stack_size(STACK_BYTES)
            .spawn(move || serve(&prologue, &started))
            .map_err(failed)?;
        let endpoint = endpoint
            .recv()
            .map_err(|_| LaneError::Gone { lane: number })?
            .map_err(failed)?;
        Ok(Self {
            number,
            endpoint,
            parked: Mutex::new(None),
            thread: Some(thread),
        })
    }

    /// Runs `f` on the lane's thread and waits for what it returns.
    fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Ops<'_>) -> T + Send + 'static,
    ) -> Result<T, LaneError> {
        let gone = || LaneError::Gone { lane: self.number };
        let (answer, answered) = channel();
        let call: Call = Box::new(move |ops| {
            // The caller waits for the answer.
            let _ = answer.send(f(ops));
        });
        match &*lock(&self.parked) {
            Some(parked) => parked.send(call).map_err(|_| gone())?,
            None => self.fire(call)?,
        }
        answered.recv().map_err(|_| gone())
    }

    fn fire(&self, call: Call) -> Result<(), LaneError> {
        self.endpoint
            .fire(move |ops| call(ops))
            .map_err(|_| LaneError::Gone { lane: self.number })
    }

    fn park(&self) -> Result<(), LaneError> {
        let mut parked = lock(&self.parked);
        if parked.is_some() {
            return Ok(());
        }
        let (calls, incoming) = channel::<Call>();
        let (stands, stood) = channel();
        self.fire(Box::new(move |ops| {
            // Whoever parks waits for this.
            let _ = stands.send(());
            for call in incoming {
                call(ops);
            }
        }))?;
        stood
            .recv()
            .map_err(|_| LaneError::Gone { lane: self.number })?;
        *parked = Some(calls);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        lock(&self.parked).take();
        // A thread that is gone already needs no word.
        let _ = self.endpoint.fire(|_| END.set(true));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(lane = self.number, "an I/O thread panicked");
        }
    }
}

thread_local! {
    /// Whether this lane's thread is to end.
    static END: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The body of a lane's thread.
fn serve(prologue: &Prologue, started: &Sender<io::Result<RemoteEndpoint<Handler>>>) {
    let made = EventManager::<Handler>::new().map_err(|error| io::Error::other(error.to_string()));
    let mut manager = match made.and_then(|manager| prologue().map(|()| manager)) {
        Ok(manager) => manager,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    if started.send(Ok(manager.remote_endpoint())).is_err() {
        return;
    }
    while !END.get() {
        if let Err(error) = manager.run() {
            // Epoll fails only by an interrupting signal.
            tracing::debug!(?error, "an I/O thread was interrupted");
        }
    }
}
