//! Memory that workers share with us, used again by later ones: the kernel's pages for new memory cost more than a small
//! layer's work.
//!
//! Owns that all of it is zero whenever somebody gets it. Who gives it back has ended the worker that had it.
//! Bounds: [`KEPT`] of each kind while any is in use, none when none is.

use super::unpack;
use podwright_sys::lend::{Shared, Shown, shared};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Areas of a kind that are kept: as many as layers of a pull usually come at once.
const KEPT: usize = 4;

/// A decompressor's memory: first places for what goes into it, then for what it makes. Each is written by one side at a
/// time. So many bytes at once that switches between the processes do not count, and so few that they stay in the
/// processor's cache; so many places that neither waits for each turn of the other.
pub(super) const IN: usize = 128 << 10;
pub(super) const INS: usize = 4;
pub(super) const OUT: usize = unpack::PIECE;
pub(super) const OUTS: usize = 4;
/// Where those begin that it makes.
pub(super) const MADE: usize = INS * IN;
const ALL: usize = MADE + OUTS * OUT;

/// Memory of a kind.
pub(crate) trait Memory: Default + Send + 'static {
    /// New, all zero, with what the worker has it by.
    fn new() -> io::Result<(Self, OwnedFd)>;
    /// Makes all of it zero.
    fn clear(&mut self);
    /// What there is of this kind.
    fn pool() -> &'static Pool<Self>;
}

impl Memory for Shared {
    fn new() -> io::Result<(Self, OwnedFd)> {
        let file = shared(ALL)?;
        Ok((Self::open(file.as_fd(), 0, ALL)?, file))
    }

    fn clear(&mut self) {
        Self::clear(self);
    }

    fn pool() -> &'static Pool<Self> {
        static POOL: Pool<Shared> = Pool::new();
        &POOL
    }
}

/// In which a parser sees a tar: large enough that a write of file data is not dominated by the system call, and small enough to
/// stay in the processor's cache between being copied, hashed and written.
impl Memory for Shown {
    fn new() -> io::Result<(Self, OwnedFd)> {
        Self::new(unpack::PIECE)
    }

    fn clear(&mut self) {
        Self::clear(self);
    }

    fn pool() -> &'static Pool<Self> {
        static POOL: Pool<Shown> = Pool::new();
        &POOL
    }
}

/// Areas that nobody has, and how many are in use.
pub(crate) struct Pool<M>(Mutex<Areas<M>>);

struct Areas<M> {
    idle: Vec<(M, OwnedFd)>,
    used: usize,
}

impl<M> Pool<M> {
    const fn new() -> Self {
        Self(Mutex::new(Areas { idle: Vec::new(), used: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Areas<M>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An area, until dropped. The worker that has it must have ended by then.
pub(crate) struct Area<M: Memory> {
    memory: M,
    /// None: it is not made yet.
    file: Option<OwnedFd>,
}

impl<M: Memory> Area<M> {
    /// One that is all zero, and what a worker gets.
    pub(crate) fn take() -> io::Result<(Self, OwnedFd)> {
        let idle = {
            let mut pool = M::pool().lock();
            pool.used += 1;
            pool.idle.pop()
        };
        // From here on it is counted.
        let mut area = Self { memory: M::default(), file: None };
        let (memory, file) = match idle {
            Some(idle) => idle,
            None => M::new()?,
        };
        area.memory = memory;
        let seen = file.try_clone();
        area.file = Some(file);
        Ok((area, seen?))
    }
}

impl<M: Memory> Drop for Area<M> {
    fn drop(&mut self) {
        let mut last = (std::mem::take(&mut self.memory), self.file.take());
        if last.1.is_some() {
            last.0.clear();
        }
        let mut freed = Vec::new();
        let mut pool = M::pool().lock();
        pool.used -= 1;
        match last {
            (memory, Some(file)) if pool.used > 0 && pool.idle.len() < KEPT => pool.idle.push((memory, file)),
            _ if pool.used == 0 => freed = std::mem::take(&mut pool.idle),
            _ => {}
        }
        drop(pool);
        // What takes time is done without the lock.
        drop(freed);
    }
}

impl<M: Memory> Deref for Area<M> {
    type Target = M;

    fn deref(&self) -> &M {
        &self.memory
    }
}

impl<M: Memory> DerefMut for Area<M> {
    fn deref_mut(&mut self) -> &mut M {
        &mut self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kind that no other test uses.
    #[derive(Default)]
    struct Mine(Shared);

    impl Memory for Mine {
        fn new() -> io::Result<(Self, OwnedFd)> {
            let file = shared(4096)?;
            Ok((Self(Shared::open(file.as_fd(), 0, 4096)?), file))
        }

        fn clear(&mut self) {
            self.0.clear();
        }

        fn pool() -> &'static Pool<Self> {
            static POOL: Pool<Mine> = Pool::new();
            &POOL
        }
    }

    #[test]
    fn who_gets_an_area_sees_nothing_of_who_had_it_before() {
        let idle = || Mine::pool().lock().idle.len();
        let (first, seen) = Area::<Mine>::take().unwrap();
        let mut theirs = Shared::open(seen.as_fd(), 0, 4096).unwrap();
        theirs.room(0, 4096).unwrap().fill(7);
        first.0.write(0, b"secret").unwrap();
        let (second, _seen) = Area::<Mine>::take().unwrap();
        drop(first);
        assert_eq!(idle(), 1);
        let (again, _seen) = Area::<Mine>::take().unwrap();
        assert_eq!(idle(), 0);
        // It is the same memory.
        assert!(again.0.bytes(0, 4096).unwrap().iter().all(|byte| *byte == 0));
        again.0.write(9, b"x").unwrap();
        assert_eq!(theirs.bytes(9, 1).unwrap(), b"x");
        drop(again);
        let many: Vec<_> = (0..2 * KEPT).map(|_| Area::<Mine>::take().unwrap()).collect();
        drop(many);
        assert_eq!(idle(), KEPT);
        drop(second);
        assert_eq!(idle(), 0, "nothing is kept when none is in use");
    }
}
