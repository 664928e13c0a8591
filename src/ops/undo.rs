//! What is to be taken back when a later step fails, newest first.

use super::Error;

/// Steps that undo what was done so far. Dropping it without [`Undo::commit`] or
/// [`Undo::roll_back`] undoes nothing: that is what a killed process does, and `gc` is for it.
#[derive(Default)]
pub(super) struct Undo<'a> {
    steps: Vec<Box<dyn FnOnce() -> Result<(), Error> + 'a>>,
}

impl std::fmt::Debug for Undo<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Undo")
            .field("steps", &self.steps.len())
            .finish()
    }
}

impl<'a> Undo<'a> {
    /// Adds the step that undoes what was just done.
    pub(super) fn push(&mut self, step: impl FnOnce() -> Result<(), Error> + 'a) {
        self.steps.push(Box::new(step));
    }

    /// Everything went well: nothing is to be undone.
    pub(super) fn commit(self) {}

    /// Undoes everything, newest first, whatever fails on the way. Returns the failures.
    pub(super) fn roll_back(self) -> Vec<Error> {
        self.steps
            .into_iter()
            .rev()
            .filter_map(|step| step().err())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn steps_are_undone_newest_first_and_all_are_tried() {
        let order = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for n in 0..3 {
            let order = &order;
            undo.push(move || {
                order.borrow_mut().push(n);
                if n == 1 {
                    Err(Error::Interrupted)
                } else {
                    Ok(())
                }
            });
        }
        assert_eq!(undo.roll_back().len(), 1);
        assert_eq!(*order.borrow(), [2, 1, 0]);
    }
}
