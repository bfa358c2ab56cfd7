//! The memory for windows of zstd frames: one budget for all that is decompressed at once, first come, first served.
//!
//! A worker may have lied about its window, or never have asked: what all workers can take is bounded by their number (`jobs`)
//! and the address space that each has. Checkpoints that are restored take no turn, since their archives may hang: they are
//! bounded with other looks at host paths (`host::foreign`).
//!
//! Usual windows are not counted in it: there are no more of them than downloads at once, and a slow registry that holds the
//! budget with a large one keeps only other large ones waiting.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Largest window of a frame, bytes: what the zstd tool itself accepts without being told to use more.
const MAX_WINDOW: u64 = 128 << 20;

/// Windows up to here are usual: zstd makes none larger without --ultra or --long.
const USUAL: u64 = 8 << 20;

/// Jobs beside downloads of layers in slots: those aside, and archives that are loaded.
const OTHER_JOBS: usize = super::slots::MAX_ASIDE + 4;

/// The budget.
#[derive(Debug)]
pub(crate) struct Windows {
    jobs: Turns,
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

/// How many may do something at once.
#[derive(Debug)]
pub(crate) struct Turns {
    free: Mutex<usize>,
    freed: Condvar,
}

/// A turn, until dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Turns);

impl Turns {
    pub(crate) const fn new(count: usize) -> Self {
        Self { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Waits for one. Who has one takes no second. Blocking.
    pub(crate) fn take(&self) -> Turn<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

impl Windows {
    #[cfg(test)]
    pub(crate) fn new(size: u64) -> Arc<Self> {
        Self::for_downloads(size, 1)
    }

    /// The budget of a store that downloads so many layers at once.
    pub(crate) fn for_downloads(size: u64, downloads: usize) -> Arc<Self> {
        let jobs = Turns::new(downloads.saturating_add(OTHER_JOBS));
        let queue = Mutex::new(Queue { free: size, next: 0, last: 0 });
        Arc::new(Self { jobs, size, queue, changed: Condvar::new() })
    }

    /// Waits until there may be one more decompressor and one more tar parser. Blocking.
    pub(crate) fn job(&self) -> Turn<'_> {
        self.jobs.take()
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
    fn no_more_jobs_than_there_are_turns_for() {
        let windows = Windows::for_downloads(0, 2);
        let mut held: Vec<_> = (0..2 + OTHER_JOBS).map(|_| windows.job()).collect();
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let job = windows.job();
                tell.send(()).unwrap();
                drop(job);
            });
            assert!(told.try_recv().is_err());
            held.pop();
            told.recv().unwrap();
        });
    }

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
