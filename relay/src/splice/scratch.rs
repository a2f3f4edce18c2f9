//! Where what is read stands for a moment, and what goes out of it: one pair of buffers for each of the runtime's threads, so that a leg owns
//! none while it is silent.

use std::cell::RefCell;

use moorline_proto::frame::Batch;

/// What one read takes from a leg: more than TLS hands over at once.
const READ: usize = 64 * 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { input: Vec::new(), batch: Batch::new() }) };
}

/// The buffers.
pub(super) struct Scratch {
    /// What was read.
    pub(super) input: Vec<u8>,
    /// What becomes of it.
    pub(super) batch: Batch,
}

/// Lends the thread's buffers, the batch empty. Not to be asked for again inside.
pub(super) fn with<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.input.is_empty() {
            scratch.input = vec![0; READ];
        }
        scratch.batch.clear();
        work(scratch)
    })
}
