//! Memory that another process sees without a copy by the kernel: some that one process writes and another reads, and some that
//! both write.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Memory that another process may look at, and never write to, from the descriptor that comes with it.
#[derive(Debug, Default)]
pub struct Shown(Mapping);

/// The other side of [`Shown`].
#[derive(Debug)]
pub struct View(Mapping);

/// A part of memory that two processes write, from [`shared`]. What lies in it may change at any time, so far as the other
/// process is not trusted.
#[derive(Debug, Default)]
pub struct Shared(Mapping);

/// Memory for [`Shared`], all zero. Nobody can change its length.
///
/// # Errors
/// The kernel's: `OutOfMemory`, or no descriptor.
pub fn shared(length: usize) -> io::Result<OwnedFd> {
    let file = memory("shared", length)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

fn memory(name: &str, length: usize) -> io::Result<OwnedFd> {
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, u64::try_from(length).map_err(io::Error::other)?)?;
    Ok(file)
}

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: it is memory of its own, known by no other value, at the same address for each thread.
unsafe impl Send for Mapping {}
// SAFETY: a shared reference only lets bytes be read, copied out where somebody else may write them.
unsafe impl Sync for Mapping {}

impl Default for Mapping {
    /// No bytes at all.
    fn default() -> Self {
        Self { start: NonNull::dangling(), length: 0 }
    }
}

impl Mapping {
    /// With all pages at once, for who will touch them all: a fault for each costs more.
    const WHOLE: libc::c_int = libc::MAP_POPULATE;

    fn new(
        file: BorrowedFd<'_>,
        offset: usize,
        length: usize,
        protection: libc::c_int,
        flags: libc::c_int,
    ) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let flags = libc::MAP_SHARED | flags;
        // SAFETY: a new mapping wherever the kernel likes touches nothing that is there.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// Where so many bytes begin at a place.
    fn at(&self, place: usize, count: usize) -> io::Result<*mut u8> {
        match place.checked_add(count) {
            Some(end) if end <= self.length => Ok(self.start.as_ptr().wrapping_add(place)),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length == 0 {
            return;
        }
        // SAFETY: the mapping is ours, of that length, and nobody uses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl Shown {
    /// Such memory, and what another process sees it by: it can neither write there nor change the length.
    ///
    /// # Errors
    /// The kernel's: `OutOfMemory`, or no descriptor.
    pub fn new(length: usize) -> io::Result<(Self, OwnedFd)> {
        let file = memory("shown", length)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = Mapping::new(file.as_fd(), 0, length, protection, Mapping::WHOLE)?;
        fcntl_add_seals(
            &file,
            SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Ok((Self(mapping), file))
    }

    /// All of it. Nobody but the caller, through this value, can change it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has that length and lives as long as self. It is written through `&mut self` alone: no other
        // process can, by the seals, and in this one nobody else knows it.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.length) }
    }

    /// Copies bytes here that lie in memory of others, once: whatever these do with them afterwards changes nothing here.
    ///
    /// # Errors
    /// `InvalidInput` for what lies beyond either's end.
    pub fn take(&mut self, to: usize, from: &Shared, place: usize, count: usize) -> io::Result<()> {
        let (to, from) = (self.0.at(to, count)?, from.0.at(place, count)?);
        // SAFETY: as many bytes are there, and room for them, in two mappings; what is being written at the time may be any
        // mixture, and there is no reference to it.
        unsafe { std::ptr::copy_nonoverlapping(from, to, count) };
        Ok(())
    }

    /// Makes all of it zero again.
    pub fn clear(&mut self) {
        // SAFETY: the mapping has that length, and there is no reference to it.
        unsafe { std::ptr::write_bytes(self.0.start.as_ptr(), 0, self.0.length) };
    }

    /// Puts bytes at the beginning.
    ///
    /// # Errors
    /// `InvalidInput` for more than there is room for.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let to = self.0.at(0, bytes.len())?;
        // SAFETY: there is room for as many, and no reference to it: whoever sees it copies. The bytes come from elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }
}

impl View {
    /// What a descriptor of [`Shown`] shows; it has as many bytes as that.
    ///
    /// # Errors
    /// The kernel's. Where the file is shorter, reading ends the process.
    pub fn new(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        Mapping::new(file, 0, length, libc::PROT_READ, 0).map(Self)
    }

    /// Copies bytes from a place. What is being written at the time may be any mixture.
    ///
    /// # Errors
    /// `InvalidInput` for what lies beyond the end.
    pub fn read(&self, place: usize, into: &mut [u8]) -> io::Result<()> {
        let from = self.0.at(place, into.len())?;
        // SAFETY: as many bytes are there, and no reference to them; those of `into` are elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}

impl Shared {
    /// The part of the memory from `offset`, which is whole pages, on: for who will use all of it.
    ///
    /// # Errors
    /// The kernel's. Where the memory is shorter, using it ends the process.
    pub fn open(memory: BorrowedFd<'_>, offset: usize, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Mapping::new(memory, offset, length, protection, Mapping::WHOLE).map(Self)
    }

    /// As [`Shared::open`], for who may use little of it.
    ///
    /// # Errors
    /// As [`Shared::open`].
    pub fn open_sparsely(memory: BorrowedFd<'_>, offset: usize, length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Mapping::new(memory, offset, length, protection, 0).map(Self)
    }

    /// Makes all of it zero again.
    pub fn clear(&mut self) {
        // SAFETY: the mapping has that length, and nobody else of this process uses it.
        unsafe { std::ptr::write_bytes(self.0.start.as_ptr(), 0, self.0.length) };
    }

    /// Puts bytes in a place, as whoever else has the memory may at any time.
    ///
    /// # Errors
    /// `InvalidInput` for what lies beyond the end.
    pub fn write(&self, place: usize, bytes: &[u8]) -> io::Result<()> {
        let to = self.0.at(place, bytes.len())?;
        // SAFETY: there is room for as many; the bytes come from elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies bytes from a place, once.
    ///
    /// # Errors
    /// `InvalidInput` for what lies beyond the end.
    pub fn read(&self, place: usize, into: &mut [u8]) -> io::Result<()> {
        let from = self.0.at(place, into.len())?;
        // SAFETY: as many bytes are there, and no reference to them; those of `into` are elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Bytes as they lie in a place.
    ///
    /// # The caller's duty
    /// The other process is one to be trusted, and does not write there as long as they are borrowed.
    ///
    /// # Errors
    /// `InvalidInput` for what lies beyond the end.
    pub fn bytes(&self, place: usize, count: usize) -> io::Result<&[u8]> {
        let start = self.0.at(place, count)?;
        // SAFETY: as many bytes are there as long as self; that nobody writes them is the caller's duty as documented.
        Ok(unsafe { std::slice::from_raw_parts(start, count) })
    }

    /// Room for bytes in a place; the same duty.
    ///
    /// # Errors
    /// `InvalidInput` for what lies beyond the end.
    pub fn room(&mut self, place: usize, count: usize) -> io::Result<&mut [u8]> {
        let start = self.0.at(place, count)?;
        // SAFETY: as many bytes are there as long as self, which is borrowed for it; that the other process leaves them alone
        // is the caller's duty as documented.
        Ok(unsafe { std::slice::from_raw_parts_mut(start, count) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_seen_and_cannot_be_written_by_who_sees_it() {
        let (mut shown, file) = Shown::new(8192).unwrap();
        let view = View::new(file.as_fd(), 8192).unwrap();
        shown.write(b"one").unwrap();
        let mut seen = [0; 3];
        view.read(0, &mut seen).unwrap();
        assert_eq!(&seen, b"one");
        shown.write(&[2; 8192]).unwrap();
        view.read(8189, &mut seen).unwrap();
        assert_eq!(seen, [2; 3]);
        assert!(shown.write(&[0; 8193]).is_err() && view.read(8190, &mut seen).is_err());
        assert!(view.read(usize::MAX, &mut seen).is_err());
        assert_eq!(shown.bytes(), [2; 8192]);
        assert!(Mapping::new(file.as_fd(), 0, 8192, libc::PROT_READ | libc::PROT_WRITE, 0).is_err());
        assert!(rustix::io::write(&file, b"x").is_err());
        assert!(ftruncate(&file, 1).is_err() && ftruncate(&file, 1 << 20).is_err());
    }

    #[test]
    fn what_both_write_keeps_its_length_and_what_was_taken_of_it_stays() {
        let memory = shared(8192).unwrap();
        let (mut ours, mut theirs) = (
            Shared::open(memory.as_fd(), 4096, 4096).unwrap(),
            Shared::open(memory.as_fd(), 0, 8192).unwrap(),
        );
        theirs.room(4096, 4096).unwrap().fill(1);
        let (mut shown, _file) = Shown::new(4096).unwrap();
        shown.take(1, &ours, 0, 4095).unwrap();
        theirs.room(4096, 4096).unwrap().fill(2);
        assert!(shown.bytes()[0] == 0 && shown.bytes()[1..].iter().all(|byte| *byte == 1));
        ours.write(4094, b"ab").unwrap();
        assert_eq!(theirs.bytes(8190, 2).unwrap(), b"ab");
        let mut read = [0; 3];
        ours.read(4093, &mut read).unwrap();
        assert_eq!(&read, b"\x02ab");
        assert!(ours.write(4095, b"ab").is_err() && ours.read(4094, &mut read).is_err());
        assert!(ours.bytes(0, 4097).is_err() && ours.room(usize::MAX, 1).is_err());
        assert!(shown.take(1, &ours, 0, 4096).is_err() && shown.take(0, &ours, 1, 4096).is_err());
        assert!(ftruncate(&memory, 1).is_err() && ftruncate(&memory, 1 << 20).is_err());
        ours.clear();
        assert!(theirs.bytes(4096, 4096).unwrap() == [0; 4096] && shown.bytes()[1] == 1);
        shown.clear();
        assert!(shown.bytes() == [0; 4096]);
    }
}
