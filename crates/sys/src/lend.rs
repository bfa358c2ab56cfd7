//! Buffers whose pages go into a pipe as they are, without a copy (`vmsplice`).

use std::io;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::fcntl::{SpliceFFlags, vmsplice};

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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

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
