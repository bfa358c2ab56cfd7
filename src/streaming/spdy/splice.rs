//! Frames whose payload the kernel moves from one socket to another: no byte is copied through this process. Owns the
//! pipe between them, which is empty except while a frame is in transit.

use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Longest payload of such a frame.
pub(super) const SPLICE_BYTES: usize = 128 << 10;
/// Capacity of the pipe: data may arrive in pieces smaller than a page, and each takes a slot. If the kernel refuses,
/// frames are shorter.
const PIPE_BYTES: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Splice {
    into: OwnedFd,
    out: OwnedFd,
}

impl Splice {
    pub(super) fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let _ = fcntl_setpipe_size(&into, PIPE_BYTES);
        Ok(Self { into, out })
    }

    /// Takes what a socket has now; 0 at its end.
    pub(super) fn take(&self, source: &TcpStream) -> io::Result<usize> {
        source.try_io(Interest::READABLE, || {
            Ok(splice(source, None, &self.into, None, SPLICE_BYTES, SpliceFlags::NONBLOCK)?)
        })
    }

    /// Sends a header, and behind it what was taken.
    pub(super) async fn give(
        &self,
        sink: &TcpStream,
        mut header: &[u8],
        mut length: usize,
    ) -> io::Result<()> {
        while !header.is_empty() {
            // The payload belongs into the same segment.
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            let sent = when_writable(sink, || Ok(rustix::net::send(sink, header, flags)?)).await?;
            header = header.get(sent..).unwrap_or_default();
        }
        while length > 0 {
            let moved = when_writable(sink, || {
                Ok(splice(&self.out, None, sink, None, length, SpliceFlags::NONBLOCK)?)
            });
            length = length.saturating_sub(moved.await?);
        }
        Ok(())
    }
}

/// Repeats it until it neither would block nor was interrupted. No progress is an error: there was data to move.
async fn when_writable(sink: &TcpStream, act: impl Fn() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match sink.try_io(Interest::WRITABLE, &act) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sink.writable().await?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_behind_its_headers() {
        let ((mut from, source), (sink, mut to)) = (connected().await, connected().await);
        let data: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let sent = data.clone();
        let sending = tokio::spawn(async move { from.write_all(&sent).await.unwrap() });
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            to.read_to_end(&mut all).await.unwrap();
            all
        });
        let (splice, mut lengths) = (Splice::new().unwrap(), Vec::new());
        loop {
            source.readable().await.unwrap();
            match splice.take(&source) {
                Ok(0) => break,
                Ok(length) => {
                    splice.give(&sink, b"header", length).await.unwrap();
                    lengths.push(length);
                }
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        drop(sink);
        sending.await.unwrap();
        let all = reading.await.unwrap();
        let (mut left, mut payload) = (&all[..], Vec::new());
        for length in lengths {
            assert!(left.starts_with(b"header") && length <= SPLICE_BYTES);
            payload.extend_from_slice(&left[6..6 + length]);
            left = &left[6 + length..];
        }
        assert!(left.is_empty() && payload == data);
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_an_error() {
        let ((mut from, source), (sink, to)) = (connected().await, connected().await);
        drop(to);
        let splice = Splice::new().unwrap();
        let failed = async {
            loop {
                from.write_all(&[0; 1000]).await.unwrap();
                source.readable().await.unwrap();
                let Ok(length) = splice.take(&source) else { continue };
                if splice.give(&sink, b"header", length).await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), failed).await.unwrap();
    }
}
