//! Bytes and file descriptors over a unix stream socket (`SCM_RIGHTS`). Never blocks, never raises SIGPIPE.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors of one message: the three stdio ends of an exec, and one spare.
pub const MAX_FDS: usize = 4;

/// Sends what the socket takes of `bytes`, with `fds` attached to the first byte.
///
/// # Errors
/// `WouldBlock` if the socket is full (nothing was sent, not even the descriptors), `BrokenPipe` if the peer is gone,
/// `InvalidInput` for more than [`MAX_FDS`] descriptors.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Receives pending bytes into `buffer` and appends received descriptors (close-on-exec) to `fds`. `Ok(0)` is the end
/// of the stream.
///
/// # Errors
/// `WouldBlock` if nothing is pending; `InvalidData` if the peer sent more descriptors than [`MAX_FDS`].
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::DONTWAIT)
}

/// As [`receive`], but waits for the first byte.
///
/// # Errors
/// As [`receive`], except `WouldBlock`.
pub fn receive_waiting(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    receive_with(socket, buffer, fds, RecvFlags::empty())
}

fn receive_with(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
    flags: RecvFlags,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more descriptors than one message may carry",
        ));
    }
    Ok(message.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        assert_eq!(send(left.as_fd(), b"one", &[writer.as_fd()]).unwrap(), 3);
        writer.write_all(b"x").unwrap();
        drop(writer);
        let (mut buffer, mut fds) = ([0; 16], Vec::new());
        assert_eq!(receive(right.as_fd(), &mut buffer, &mut fds).unwrap(), 3);
        assert_eq!(fds.len(), 1);
        std::fs::File::from(fds.remove(0)).write_all(b"y").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "xy");
        let empty = receive(right.as_fd(), &mut buffer, &mut fds).unwrap_err();
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(left);
        assert_eq!(receive(right.as_fd(), &mut buffer, &mut fds).unwrap(), 0);
    }
}
