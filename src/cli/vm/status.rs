//! `cocoon vm status`

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use clap_complete::ArgValueCandidates;
use jiff::Timestamp;
use serde::Serialize;

use super::super::completion;
use super::super::error::Failure;
use super::super::output::{self, FormatArgs};
use crate::ops::Host;
use crate::ops::inspect::summary;
use crate::ops::list::{self, Observed};
use crate::ops::status::{self, Event};
use crate::ops::watch::{Watch, Woken};
use crate::sys::interrupt::Interrupt;
use crate::units::VmId;
use crate::vm::VmState;

const HEADER: [&str; 8] = [
    "ID", "NAME", "STATE", "SINCE", "CPU", "MEMORY", "IP", "REASON",
];

/// Puts the cursor into the upper left corner of a terminal and clears what is there (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What `cocoon vm status` takes.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct StatusArgs {
    /// Show it again whenever something changes, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Print what happens, a line of JSON for each change, until Ctrl-C
    #[arg(long, visible_alias = "event", conflicts_with = "watch")]
    events: bool,
    #[command(flatten)]
    format: FormatArgs,
    /// Names, ids, or beginnings of ids [default: all VMs]
    #[arg(value_name = "VM", add = ArgValueCandidates::new(completion::vms))]
    vms: Vec<String>,
}

/// One line of `--events`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: Timestamp,
    #[serde(flatten)]
    event: &'a Event,
}

/// Shows states, or what becomes of them.
pub(in crate::cli) fn status(host: &Host, args: &StatusArgs) -> Result<(), Failure> {
    let resolved = host.resolve_all(&args.vms)?;
    let chosen: Vec<VmId> = resolved.into_iter().map(|(id, _)| id).collect();
    if args.events {
        let mut before: Option<Vec<Observed>> = None;
        return follow(host, &chosen, |vms| {
            let events = before
                .replace(vms.to_vec())
                .map(|old| status::events(&old, vms));
            events.iter().flatten().try_for_each(tell)
        });
    }
    if args.watch {
        let mut shown = None;
        return follow(host, &chosen, |vms| {
            let text = text(host, args, vms)?;
            if shown.as_ref() == Some(&text) {
                return Ok(());
            }
            show(&text)?;
            shown = Some(text);
            Ok(())
        });
    }
    let mut vms = list::list(host)?;
    choose(&mut vms, &chosen);
    if vms.is_empty() && !args.format.is_json() {
        output::note("No VMs found.");
        return Ok(());
    }
    output::raw(text(host, args, &vms)?.as_bytes())
}

/// Gives `take` the chosen VMs, and again whenever they may have changed, until the user has enough.
fn follow(
    host: &Host,
    chosen: &[VmId],
    mut take: impl FnMut(&[Observed]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let interrupt = Interrupt::on_signals().map_err(Failure::Signals)?;
    let mut watch = Watch::start(host)?;
    let mut is_first = true;
    loop {
        let mut vms = watch.look()?;
        choose(&mut vms, chosen);
        take(&vms)?;
        if std::mem::take(&mut is_first) {
            output::note("Watching; Ctrl-C ends it.");
        }
        if watch.wait(&interrupt, io::stdout().as_fd())? == Woken::Over {
            return Ok(());
        }
    }
}

/// All of them where none is chosen.
fn choose(vms: &mut Vec<Observed>, chosen: &[VmId]) {
    vms.retain(|vm| chosen.is_empty() || chosen.contains(&vm.record.id));
}

fn tell(event: &Event) -> Result<(), Failure> {
    let line = Line {
        time: Timestamp::now(),
        event,
    };
    let text = serde_json::to_string(&line).map_err(|error| Failure::Output(error.into()))?;
    output::raw(format!("{text}\n").as_bytes())?;
    io::stdout().flush().map_err(Failure::Output)
}

/// In place on a terminal, below what was there else.
fn show(text: &str) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        output::raw(CLEAR.as_bytes())?;
    }
    output::raw(text.as_bytes())?;
    io::stdout().flush().map_err(Failure::Output)
}

/// A table, or JSON: many lines of it once, a single one of many.
fn text(host: &Host, args: &StatusArgs, vms: &[Observed]) -> Result<String, Failure> {
    if !args.format.is_json() {
        return Ok(output::columns(
            &HEADER,
            &vms.iter().map(row).collect::<Vec<_>>(),
        ));
    }
    let all: Vec<_> = vms.iter().map(|vm| summary(host, vm)).collect();
    let json = if args.watch {
        serde_json::to_string(&all)
    } else {
        serde_json::to_string_pretty(&all)
    };
    let json = json.map_err(|error| Failure::Output(error.into()))?;
    Ok(format!("{json}\n"))
}

fn row(vm: &Observed) -> Vec<String> {
    let (record, config) = (&vm.record, &vm.record.config);
    let since = match record.state {
        VmState::Running => record.started_at,
        VmState::Stopped => record.stopped_at,
        _ => None,
    };
    let addresses: Vec<_> = vm.addresses().map(|ip| ip.to_string()).collect();
    vec![
        record.id.to_string(),
        record.name.to_string(),
        record.state.to_string(),
        output::local_time(since.unwrap_or(record.updated_at)),
        config.cpu.to_string(),
        config.memory.to_string(),
        output::or_dash(addresses.join(",")),
        output::or_dash(record.reason.clone().unwrap_or_default()),
    ]
}
