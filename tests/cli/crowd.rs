//! Many commands at once that pull images and make VMs of them, beside one `gc` after the other.
//!
//! ```text
//! each of 16:  pull ──▶ gc ──▶ create ──▶ gc ──▶ rm of the image ──▶ gc ──▶ pull again, of what is here
//!               │        └── waits until one has been done since: all of them meet here
//!               └── through a gate that opens a little for each gc that was refused meanwhile
//! ```
//! So how often `gc` ran in the middle does not depend on who is faster: no pull ends before it was refused
//! some number of times, and nobody goes on to the next step before it has been done once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::counter::{Counter, SHAPE};
use crate::support::gate::Gate;
use crate::support::image::{Registry, data_tar, root_tar};
use crate::support::{left, stderr};

/// Commands at once.
const CROWD: usize = 16;

/// Bytes of all images together that pass the gate for each `gc` that was refused. It makes some 30 of them.
const SLICE: u64 = 64 << 10;

/// Bytes of each layer with data.
const LAYER: usize = 100_000;

/// Wait until all have met, on a busy host.
const SOON: Duration = Duration::from_secs(300);

/// How often `gc` ended, and how.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    done: u64,
    refused: u64,
}

#[derive(Default)]
struct Collector {
    runs: Mutex<Runs>,
    changed: Condvar,
    over: AtomicBool,
}

impl Collector {
    /// Runs `gc` over and over.
    fn collect(&self, counter: &Counter, gate: &Gate) {
        let _opened = Opened(gate);
        let begun = Instant::now();
        while !self.over.load(Ordering::SeqCst) {
            assert!(begun.elapsed() < SOON, "no end: {:?}", self.runs);
            let gc = counter.try_(&["gc"]);
            let mut runs = self.runs.lock().unwrap();
            if gc.status.success() {
                runs.done += 1;
            } else {
                let told = stderr(&gc);
                assert!(told.contains("is making references"), "{told}");
                runs.refused += 1;
                gate.let_through(SLICE);
            }
            drop(runs);
            self.changed.notify_all();
        }
    }

    /// Waits until one that began later than now has been done.
    fn wait_for_one(&self) {
        let runs = self.runs.lock().unwrap();
        // One may be at work now.
        let enough = runs.done + 2;
        let waited = self
            .changed
            .wait_timeout_while(runs, SOON, |runs| runs.done < enough);
        assert!(!waited.unwrap().1.timed_out(), "gc is never done");
    }
}

/// Ends the collector, also when another thread has panicked.
struct End<'a>(&'a Collector);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// Opens the gate at the end, whatever the end was.
struct Opened<'a>(&'a Gate);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.let_through(u64::MAX);
    }
}

/// What boots, two layers that others have, too, and one that nobody else has.
fn layers(index: usize) -> Vec<Vec<u8>> {
    vec![
        root_tar(),
        data_tar(&format!("of four {}", index / 4), LAYER),
        data_tar(&format!("of the odd {}", index % 2), LAYER),
        data_tar(&format!("of {index}"), LAYER),
    ]
}

/// What one of the crowd does.
fn live(counter: &Counter, collector: &Collector, index: usize, image: &str) {
    counter.ok(&["image", "pull", image]);
    collector.wait_for_one();
    let files = counter.files_of(image);
    let vm = format!("vm{index}");
    let create = [&["vm", "create", "--name", &vm, "--nics", "0"], &SHAPE[..]].concat();
    counter.ok(&[&create[..], &[image]].concat());
    collector.wait_for_one();
    // The VM needs its layers all the same.
    counter.ok(&["image", "rm", image]);
    collector.wait_for_one();
    counter.ok(&["image", "pull", image]);
    assert_eq!(counter.files_of(image), files, "{image}");
}

#[test]
fn root_gc_takes_nothing_from_sixteen_that_pull_and_create_at_once() {
    let (Some(registry), Some(counter)) = (Registry::start(), Counter::run()) else {
        return;
    };
    let gate = Gate::before(registry.address);
    let names: Vec<_> = (0..CROWD).map(|index| format!("vm{index}")).collect();
    for (index, name) in names.iter().enumerate() {
        registry.push(name, &layers(index));
    }
    let images: Vec<_> = names.iter().map(|name| gate.reference(name)).collect();
    // Layers of some are here, and nobody's: the first gc that is not refused takes them.
    for image in ["vm0", "vm7"] {
        let image = registry.reference(image);
        counter.ok(&["image", "pull", &image]);
        counter.ok(&["image", "rm", &image]);
    }
    let collector = Collector::default();
    thread::scope(|scope| {
        let end = End(&collector);
        let living: Vec<_> = (0..CROWD)
            .map(|index| {
                let (counter, collector, image) = (&counter, &collector, &images[index]);
                scope.spawn(move || live(counter, collector, index, image))
            })
            .collect();
        scope.spawn(|| collector.collect(&counter, &gate));
        for one in living {
            one.join().unwrap();
        }
        drop(end);
    });
    let runs = *collector.runs.lock().unwrap();
    println!(
        "gc was refused {} times, and done {} times",
        runs.refused, runs.done
    );
    assert!(runs.refused >= 20, "{runs:?}");
    assert!(runs.done >= 3, "{runs:?}");
    counter.ok(&["gc"]);
    left::nothing(&counter, "a crowd");
    for vm in &names {
        counter.ok(&["vm", "start", vm]);
        counter.vm_goes_on(vm);
        counter.ok(&["vm", "rm", "--force", vm]);
    }
    for image in &images {
        counter.ok(&["image", "rm", image]);
    }
    counter.ok(&["gc"]);
    left::nothing(&counter, "a crowd that has gone");
}
