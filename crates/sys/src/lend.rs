//! Memory that another process sees without a copy by the kernel: buffers whose pages go into a pipe as they are (`vmsplice`),
//! and memory that one process writes and another reads.

use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{SpliceFFlags, vmsplice};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Memory of its own, in whole pages. What of it is in a pipe when it is dropped stays there as it is: the pages go back to
/// the kernel only when the pipe has been read.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    length: usize,
}

impl Pages {
    /// New ones, all zero.
    ///
    /// # Errors
    /// The kernel's: `OutOfMemory`; `InvalidInput` for no bytes at all.
    pub fn new(length: usize) -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping wherever the kernel likes touches nothing that is there.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    /// The bytes. Whoever has pages of them, from [`Pages::lend`], sees what is written here.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has that length, lives as long as self, and nobody else of this process knows it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }

    /// Puts the pages of the first `length` bytes into a pipe, and waits for room where there is none. Until they have left
    /// it, their reader sees what is written here.
    ///
    /// # Errors
    /// `BrokenPipe` without a reader; `InvalidInput` for more bytes than there are.
    pub fn lend(&mut self, pipe: BorrowedFd<'_>, length: usize) -> io::Result<()> {
        let mut rest = self.bytes().get(..length).ok_or(io::ErrorKind::InvalidInput)?;
        while !rest.is_empty() {
            // SAFETY: the memory is ours, and stays while it is in the pipe, also when it is unmapped. What changes in it
            // meanwhile is seen by readers of the pipe alone, who have bytes and no references.
            match unsafe { vmsplice(pipe, &[IoSlice::new(rest)], SpliceFFlags::empty()) } {
                Ok(lent) => rest = rest.get(lent..).unwrap_or_default(),
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of that length, and nobody uses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Memory that another process may look at, and never write to, from the descriptor that comes with it.
#[derive(Debug)]
pub struct Shown(Mapping);

/// The other side of [`Shown`].
#[derive(Debug)]
pub struct View(Mapping);

#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: it is memory of its own, known by no other value, at the same address for each thread.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, length: usize, protection: libc::c_int) -> io::Result<Self> {
        // SAFETY: a new mapping wherever the kernel likes touches nothing that is there.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
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
        let file = memfd_create("shown", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&file, u64::try_from(length).map_err(io::Error::other)?)?;
        let mapping = Mapping::new(file.as_fd(), length, libc::PROT_READ | libc::PROT_WRITE)?;
        fcntl_add_seals(
            &file,
            SealFlags::FUTURE_WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        Ok((Self(mapping), file))
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
        Mapping::new(file, length, libc::PROT_READ).map(Self)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

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
        assert!(Mapping::new(file.as_fd(), 8192, libc::PROT_READ | libc::PROT_WRITE).is_err());
        assert!(rustix::io::write(&file, b"x").is_err());
        assert!(ftruncate(&file, 1).is_err() && ftruncate(&file, 1 << 20).is_err());
    }

    #[test]
    fn what_was_lent_is_read_also_when_the_buffer_has_gone() {
        let (mut read, write) = std::io::pipe().unwrap();
        let mut pages = Pages::new(8192).unwrap();
        pages.bytes().fill(7);
        assert_eq!(pages.lend(write.as_fd(), 8193).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        pages.lend(write.as_fd(), 5000).unwrap();
        drop(pages);
        // Whatever takes its place.
        let mut next = Pages::new(8192).unwrap();
        next.bytes().fill(8);
        drop(write);
        let mut got = Vec::new();
        read.read_to_end(&mut got).unwrap();
        assert!(got == [7; 5000]);
        drop(read);
    }
}
