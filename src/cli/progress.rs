//! The progress of a pull: a bar for each layer on a terminal, plain lines elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::image::progress::{Progress, PullEvent};
use crate::image::reference::Reference;
use crate::units::Digest;

/// Shows what a pull does, on standard error.
#[derive(Debug)]
pub(super) struct PullProgress {
    image: String,
    bars: Option<MultiProgress>,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl PullProgress {
    /// Begins to show the pull of `reference`.
    pub(super) fn new(reference: &Reference) -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self {
            image: reference.to_string(),
            bars,
            layers: Mutex::default(),
        }
    }

    /// Leaves the bars as they are and writes below them from now on.
    pub(super) fn finish(&self) {
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
            PullEvent::Resolved { manifest, layers } => {
                self.say(format!(
                    "pulling {} ({}, {} layers)",
                    self.image,
                    manifest.short(),
                    layers.len()
                ));
                layers
                    .iter()
                    .for_each(|layer| self.add(layer.digest, layer.compressed_size));
            }
            PullEvent::LayerWaiting { layer } => {
                self.layer(layer, |bar| bar.set_message("waiting for another pull"))
            }
            PullEvent::LayerCached { layer } => self.end(layer, "already here"),
            PullEvent::LayerStarted { layer, .. } => self.layer(layer, |bar| bar.set_message("")),
            PullEvent::LayerAdvanced { layer, bytes } => self.layer(layer, |bar| bar.inc(bytes)),
            PullEvent::Retry {
                layer,
                reason,
                delay,
            } => self.say(retry(layer, reason, delay)),
            PullEvent::LayerDone { layer, .. } => self.end(layer, "done"),
        }
    }
}

fn retry(layer: Option<Digest>, reason: &dyn std::error::Error, delay: Duration) -> String {
    let what = layer.map_or_else(|| "the manifest".to_owned(), |layer| layer.short());
    format!(
        "{what}: {reason}; trying again in {:.1} s",
        delay.as_secs_f32()
    )
}

fn style() -> ProgressStyle {
    let template = "{prefix} {bar:30} {bytes:>10}/{total_bytes:<10} {msg}";
    // The template is constant; were it wrong, the default style would still tell.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
