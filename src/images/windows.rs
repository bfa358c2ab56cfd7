//! The memory for windows of zstd frames: one budget for all that is decompressed at once, first come, first served.
//!
//! Usual windows are not counted in it: there are no more of them than downloads at once, and a slow registry that holds the
//! budget with a large one keeps only other large ones waiting.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Largest window of a frame, bytes: what the zstd tool itself accepts without being told to use more.
const MAX_WINDOW: u64 = 128 << 20;

/// Windows up to here are usual: zstd makes none larger without --ultra or --long.
const USUAL: u64 = 8 << 20;

/// The budget.
#[derive(Debug)]
pub(crate) struct Windows {
    size: u64,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug)]
struct Queue {
    free: u64,
    /// Who may take next, and who comes last.
    next: u64,
    last: u64,
}

/// A part of the budget, until dropped.
#[derive(Debug)]
pub(crate) struct Window {
    of: Arc<Windows>,
    bytes: u64,
}

impl Windows {
    pub(crate) fn new(size: u64) -> Arc<Self> {
        let queue = Mutex::new(Queue { free: size, next: 0, last: 0 });
        Arc::new(Self { size, queue, changed: Condvar::new() })
    }

    /// Largest window that can be had.
    pub(crate) fn largest(&self) -> u64 {
        self.size.clamp(USUAL, MAX_WINDOW)
    }

    /// Waits for `bytes`. None: it is more than can be had. Who holds a part already gives it back first: two that wait for
    /// each other's would wait for ever. Blocking.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Option<Window> {
        if bytes > self.largest() {
            return None;
        }
        if bytes <= USUAL {
            return Some(Window { of: Arc::clone(self), bytes: 0 });
        }
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = queue.last;
        queue.last += 1;
        while queue.next != turn || queue.free < bytes {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.next += 1;
        queue.free -= bytes;
        self.changed.notify_all();
        Some(Window { of: Arc::clone(self), bytes })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.of.queue.lock().unwrap_or_else(PoisonError::into_inner).free += self.bytes;
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn what_does_not_fit_waits_and_what_never_fits_is_refused() {
        const MIB: u64 = 1 << 20;
        let windows = Windows::new(100 * MIB);
        assert!(windows.take(101 * MIB).is_none() && Windows::new(1 << 40).take((128 << 20) + 1).is_none());
        assert!(Windows::new(0).take(9 * MIB).is_none());
        let first = windows.take(60 * MIB).unwrap();
        let (tell, told) = mpsc::channel();
        let waiting = |bytes| {
            let (windows, tell) = (Arc::clone(&windows), tell.clone());
            std::thread::spawn(move || {
                let window = windows.take(bytes).unwrap();
                tell.send(window.bytes).unwrap();
                drop(window);
            })
        };
        let large = waiting(80 * MIB);
        while windows.queue.lock().unwrap().last < 2 {
            std::thread::yield_now();
        }
        // There is room for it, but it is not its turn: the large one would never come.
        let small = waiting(30 * MIB);
        while windows.queue.lock().unwrap().last < 3 {
            std::thread::yield_now();
        }
        assert!(told.try_recv().is_err());
        // A usual one neither waits nor takes of it.
        assert_eq!(windows.take(8 * MIB).unwrap().bytes, 0);
        drop(first);
        large.join().unwrap();
        small.join().unwrap();
        assert_eq!((told.recv().unwrap(), told.recv().unwrap()), (80 * MIB, 30 * MIB));
        assert_eq!(windows.queue.lock().unwrap().free, 100 * MIB);
    }
}
