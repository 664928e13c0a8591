//! The progress of a pull or an import: a bar for each layer on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::fmt;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::image::progress::{DiskStep, Progress, PullEvent};
use crate::units::Digest;

/// Shows what a pull or an import does, on standard error.
#[derive(Debug)]
pub(super) struct PullProgress {
    doing: &'static str,
    image: String,
    bars: Option<MultiProgress>,
    /// The file or stream whose layers are not known yet, or the disk image.
    stream: Mutex<Option<ProgressBar>>,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl PullProgress {
    /// Begins to show what is being done, such as `pulling`, to get `image`.
    pub(super) fn new(doing: &'static str, image: &dyn fmt::Display) -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self {
            doing,
            image: image.to_string(),
            bars,
            stream: Mutex::default(),
            layers: Mutex::default(),
        }
    }

    /// Leaves the bars as they are and writes below them from now on.
    pub(super) fn finish(&self) {
        self.stream(ProgressBar::abandon);
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers
            .values()
            .filter(|bar| !bar.is_finished())
            .for_each(ProgressBar::abandon);
    }

    fn say(&self, text: String) {
        match &self.bars {
            // A bar that cannot be drawn is no reason to stop a pull.
            Some(bars) => drop(bars.println(text)),
            None => output::note(text),
        }
    }

    fn layer(&self, layer: Digest, change: impl FnOnce(&ProgressBar)) {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = layers.get(&layer) {
            change(bar);
        }
    }

    fn begin_stream(&self, doing: &'static str, total: Option<u64>) {
        let Some(bars) = &self.bars else { return };
        let bar = match total {
            Some(total) => ProgressBar::new(total).with_style(style()),
            None => ProgressBar::no_length().with_style(style_without_end()),
        };
        let bar = bars.add(bar.with_prefix(doing));
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(done) = stream.replace(bar) {
            done.abandon();
        }
    }

    fn stream(&self, change: impl Fn(&ProgressBar)) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.iter().for_each(change);
    }

    fn add(&self, layer: Digest, total: u64) {
        let Some(bars) = &self.bars else { return };
        let bar = bars.add(
            ProgressBar::new(total)
                .with_style(style())
                .with_prefix(layer.short()),
        );
        self.layers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(layer, bar);
    }

    /// The end of a layer: its bar's message, or a line.
    fn end(&self, layer: Digest, how: &'static str) {
        if self.bars.is_some() {
            self.layer(layer, |bar| bar.finish_with_message(how));
        } else {
            output::note(format_args!("{} {how}", layer.short()));
        }
    }
}

impl Progress for PullProgress {
    fn event(&self, event: PullEvent<'_>) {
        match event {
            PullEvent::StreamStarted { total } => self.begin_stream("reading", total),
            PullEvent::StreamAdvanced { bytes } => self.stream(|bar| bar.inc(bytes)),
            PullEvent::Resolved { manifest, layers } => {
                self.stream(ProgressBar::abandon);
                self.say(format!(
                    "{} {} ({}, {} layers)",
                    self.doing,
                    self.image,
                    manifest.short(),
                    layers.len()
                ));
                layers
                    .iter()
                    .for_each(|layer| self.add(layer.digest, layer.compressed_size));
            }
            PullEvent::LayerWaiting { layer } => {
                self.layer(layer, |bar| bar.set_message("waiting for another command"))
            }
            PullEvent::LayerCached { layer } => self.end(layer, "already here"),
            PullEvent::LayerStarted { layer, .. } => self.layer(layer, |bar| {
                bar.set_message("");
                bar.set_position(0);
            }),
            PullEvent::LayerAdvanced { layer, bytes } => self.layer(layer, |bar| bar.inc(bytes)),
            PullEvent::Retry {
                layer,
                reason,
                delay,
            } => self.say(retry(layer, reason, delay)),
            PullEvent::NextHost { reason } => {
                self.say(format!("{reason}; the next host is asked"));
            }
            PullEvent::LayerDone { layer, .. } => self.end(layer, "done"),
            PullEvent::DiskStep { step, total } => self.begin_stream(word(step), total),
            PullEvent::DiskAdvanced { bytes } => self.stream(|bar| bar.inc(bytes)),
            PullEvent::DiskRetry { reason, delay } => self.say(again(reason, delay)),
        }
    }
}

fn retry(layer: Option<Digest>, reason: &dyn std::error::Error, delay: Duration) -> String {
    let what = layer.map_or_else(|| "the manifest".to_owned(), |layer| layer.short());
    format!("{what}: {}", again(reason, delay))
}

fn again(reason: &dyn std::error::Error, delay: Duration) -> String {
    format!("{reason}; trying again in {:.1} s", delay.as_secs_f32())
}

fn word(step: DiskStep) -> &'static str {
    match step {
        DiskStep::Fetching => "fetching",
        DiskStep::Reading => "reading",
        DiskStep::Unpacking => "unpacking",
        DiskStep::Converting => "converting",
        DiskStep::Storing => "storing",
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}";
    // The template is constant; were it wrong, the default style would still tell.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn style_without_end() -> ProgressStyle {
    let template = "{prefix} {bytes:>10} {msg}";
    // As above.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
