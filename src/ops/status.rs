//! `vm status`: what has happened to VMs, from what they were and are. Pure.

use std::collections::HashMap;

use serde::Serialize;

use super::list::Observed;
use crate::units::{VmId, VmName};
use crate::vm::VmState;

/// What happened to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Happened {
    /// It is complete; until then nothing is said of it.
    Created,
    /// Its guest runs, for the first time or anew.
    Started,
    /// Its guest was halted.
    Paused,
    /// Its halted guest goes on.
    Resumed,
    /// It has no process any more; the reason is why.
    Stopped,
    /// It is gone.
    Removed,
    /// Its name, what it was asked to be, its addresses or another state.
    Changed,
}

/// One thing that happened to one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of `vm inspect`")]
pub struct Event {
    /// The VM.
    pub id: VmId,
    pub name: VmName,
    pub event: Happened,
    /// Its state after all that happened at once.
    pub state: VmState,
    pub reason: Option<String>,
}

/// What happened between two looks at all VMs, in the order of the new ones; those that are gone first.
pub fn events(old: &[Observed], new: &[Observed]) -> Vec<Event> {
    let by_id = |vms: &'_ [Observed]| -> HashMap<VmId, usize> {
        let ids = vms.iter().enumerate();
        ids.map(|(at, vm)| (vm.record.id, at)).collect()
    };
    let (before, after) = (by_id(old), by_id(new));
    let gone = old
        .iter()
        .filter(|vm| !after.contains_key(&vm.record.id))
        .flat_map(|vm| told(vm, VmState::Removing, of_a_gone_one(vm.record.state)));
    let rest = new.iter().flat_map(|vm| {
        let before = before.get(&vm.record.id).map(|at| &old[*at]);
        told(vm, vm.record.state, between(before, vm))
    });
    gone.chain(rest).collect()
}

fn told(
    vm: &Observed,
    state: VmState,
    happened: Vec<Happened>,
) -> impl Iterator<Item = Event> + use<> {
    let record = vm.record.clone();
    happened.into_iter().map(move |event| Event {
        id: record.id,
        name: record.name.clone(),
        event,
        state,
        reason: record.reason.clone(),
    })
}

fn of_a_gone_one(was: VmState) -> Vec<Happened> {
    match was {
        VmState::Creating => vec![],
        VmState::Running | VmState::Paused => vec![Happened::Stopped, Happened::Removed],
        _ => vec![Happened::Removed],
    }
}

fn between(old: Option<&Observed>, new: &Observed) -> Vec<Happened> {
    use Happened::{Changed, Created, Paused, Resumed, Started, Stopped};
    let is = new.record.state;
    let begun: &[Happened] = match is {
        VmState::Running => &[Started],
        VmState::Paused => &[Started, Paused],
        _ => &[],
    };
    let old = old.filter(|vm| vm.record.state != VmState::Creating);
    let Some(old) = old else {
        // One whose making was cut off and which is being removed never was.
        return match is {
            VmState::Creating | VmState::Removing => vec![],
            _ => [&[Created], begun].concat(),
        };
    };
    let was = old.record.state;
    let mut happened = if was.is_alive() && is.is_alive() && is_another_run(old, new) {
        [&[Stopped], begun].concat()
    } else {
        match (was, is) {
            (VmState::Running, VmState::Paused) => vec![Paused],
            (VmState::Paused, VmState::Running) => vec![Resumed],
            _ if was.is_alive() && !is.is_alive() => vec![Stopped],
            _ if !was.is_alive() => begun.to_vec(),
            _ => vec![],
        }
    };
    // What is being removed is soon said to be gone.
    let other_state = happened.is_empty() && was != is && is != VmState::Removing;
    if other_state || is_another_vm(old, new) {
        happened.push(Changed);
    }
    happened
}

fn is_another_run(old: &Observed, new: &Observed) -> bool {
    old.record.started_at != new.record.started_at
}

fn is_another_vm(old: &Observed, new: &Observed) -> bool {
    let what = |vm: &Observed| (vm.record.name.clone(), vm.record.config.clone());
    what(old) != what(new) || !old.addresses().eq(new.addresses())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteSize, Digest, EngineName};
    use crate::vm::VmRecord;
    use crate::vm::config::{Hugepages, Layers, Root, VmConfig};

    fn vm(id: &str, state: VmState) -> Observed {
        let nothing = Digest::of(b"");
        let time = "2026-01-01T00:00:00Z".parse().unwrap();
        Observed {
            record: VmRecord {
                id: id.parse().unwrap(),
                name: "web".parse().unwrap(),
                state,
                reason: None,
                created_at: time,
                updated_at: time,
                started_at: None,
                stopped_at: None,
                first_booted_at: None,
                config: VmConfig {
                    engine: EngineName::Micro,
                    cpu: 1,
                    memory: ByteSize::from_gib(1),
                    storage: ByteSize::from_gib(1),
                    nics: 0,
                    hugepages: Hugepages::Off,
                    dns: vec![],
                    image: "web".into(),
                    image_digest: nothing,
                    root: Root::Layers(Layers {
                        layers: vec![],
                        kernel: nothing,
                        initrd: nothing,
                    }),
                },
            },
            network: None,
        }
    }

    const ID: &str = "0000000000000001";

    fn happened(old: Option<VmState>, new: Option<VmState>) -> Vec<Happened> {
        let list = |state: Option<VmState>| -> Vec<_> {
            state.into_iter().map(|state| vm(ID, state)).collect()
        };
        let events = events(&list(old), &list(new));
        events.into_iter().map(|event| event.event).collect()
    }

    #[test]
    fn every_way_from_one_state_to_another_is_told() {
        use Happened::{Changed, Created, Paused, Removed, Resumed, Started, Stopped};
        use VmState as S;
        let cases: [(Option<S>, Option<S>, &[Happened]); 25] = [
            (None, None, &[]),
            (None, Some(S::Creating), &[]),
            (None, Some(S::Created), &[Created]),
            (None, Some(S::Running), &[Created, Started]),
            (None, Some(S::Stopped), &[Created]),
            (None, Some(S::Removing), &[]),
            (Some(S::Creating), Some(S::Created), &[Created]),
            (Some(S::Creating), Some(S::Running), &[Created, Started]),
            (Some(S::Creating), Some(S::Removing), &[]),
            (Some(S::Creating), None, &[]),
            (Some(S::Created), Some(S::Created), &[]),
            (Some(S::Created), Some(S::Running), &[Started]),
            (Some(S::Created), Some(S::Paused), &[Started, Paused]),
            (Some(S::Created), Some(S::Error), &[Changed]),
            (Some(S::Created), Some(S::Removing), &[]),
            (Some(S::Running), Some(S::Running), &[]),
            (Some(S::Running), Some(S::Paused), &[Paused]),
            (Some(S::Paused), Some(S::Running), &[Resumed]),
            (Some(S::Running), Some(S::Stopped), &[Stopped]),
            (Some(S::Paused), Some(S::Removing), &[Stopped]),
            (Some(S::Running), None, &[Stopped, Removed]),
            (Some(S::Error), Some(S::Running), &[Started]),
            (Some(S::Stopped), Some(S::Running), &[Started]),
            (Some(S::Stopped), None, &[Removed]),
            (Some(S::Removing), None, &[Removed]),
        ];
        for (old, new, expected) in cases {
            assert_eq!(happened(old, new), expected, "{old:?} to {new:?}");
        }
    }

    #[test]
    fn a_stop_and_a_start_that_were_seen_as_one_are_both_told() {
        let old = vm(ID, VmState::Running);
        let mut new = old.clone();
        new.record.started_at = Some("2026-01-01T00:00:01Z".parse().unwrap());
        assert_eq!(
            between(Some(&old), &new),
            [Happened::Stopped, Happened::Started]
        );
    }

    #[test]
    fn what_else_is_another_is_a_change_and_a_touch_is_none() {
        let old = vm(ID, VmState::Stopped);
        let mut new = old.clone();
        new.record.updated_at = "2026-01-01T00:00:01Z".parse().unwrap();
        assert_eq!(between(Some(&old), &new), []);
        new.record.config.cpu = 2;
        assert_eq!(between(Some(&old), &new), [Happened::Changed]);
        new.record.state = VmState::Running;
        assert_eq!(
            between(Some(&old), &new),
            [Happened::Started, Happened::Changed]
        );
    }

    #[test]
    fn an_event_says_of_which_vm_it_is_and_the_gone_ones_come_first() {
        let other = "0000000000000002";
        let old = [vm(ID, VmState::Running), vm(other, VmState::Stopped)];
        let new = [vm(other, VmState::Running)];
        let events = events(&old, &new);
        let told: Vec<_> = events
            .iter()
            .map(|event| serde_json::to_string(event).unwrap())
            .collect();
        let gone = |event| {
            format!(
                r#"{{"id":"{ID}","name":"web","event":"{event}","state":"removing","reason":null}}"#
            )
        };
        let started = format!(
            r#"{{"id":"{other}","name":"web","event":"started","state":"running","reason":null}}"#
        );
        assert_eq!(told, [gone("stopped"), gone("removed"), started]);
    }
}
