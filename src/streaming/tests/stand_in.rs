//! Pods made of tasks and pipes.

use crate::model::TerminalSize;
use crate::sandbox::SandboxError;
use crate::streaming::backend::*;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};

/// Counts live objects.
#[derive(Clone, Default)]
pub(super) struct StandIn {
    pub(super) alive: Arc<AtomicUsize>,
}

struct Controls {
    alive: Arc<AtomicUsize>,
    sizes: mpsc::UnboundedSender<TerminalSize>,
    ended: watch::Receiver<Option<Ended>>,
}

impl Drop for Controls {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Control for Controls {
    fn resize(&self, size: TerminalSize) -> Boxed<'_, Result<(), SandboxError>> {
        let _ = self.sizes.send(size);
        Box::pin(async { Ok(()) })
    }

    fn ended(&self) -> Boxed<'_, Result<Ended, SandboxError>> {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            let lost = || failed(io::Error::other("monitor lost"));
            let ended = ended.wait_for(Option::is_some).await.map_err(|_| lost())?;
            ended.ok_or_else(lost)
        })
    }
}

pub(super) fn failed(source: io::Error) -> SandboxError {
    SandboxError::Io { operation: "start", path: "command".into(), source }
}

struct Inside {
    stdin: Option<pipe::Receiver>,
    stdout: Option<pipe::Sender>,
    stderr: Option<pipe::Sender>,
    first: Option<TerminalSize>,
    sizes: mpsc::UnboundedReceiver<TerminalSize>,
}

async fn put(out: &mut Option<pipe::Sender>, data: &[u8]) {
    if let Some(out) = out {
        let _ = out.write_all(data).await;
    }
}

fn text(size: Option<TerminalSize>) -> String {
    size.map_or("none\n".to_owned(), |size| format!("{}x{}\n", size.columns, size.rows))
}

/// The programs that there are.
async fn program(words: Vec<String>, mut inside: Inside) -> Ended {
    let number = |at: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(0);
    match words[0].as_str() {
        "echo" => put(&mut inside.stdout, words[1].as_bytes()).await,
        "both" => {
            put(&mut inside.stdout, b"out").await;
            put(&mut inside.stderr, b"err").await;
        }
        "cat" => {
            let mut data = vec![0; 64 << 10];
            while let Some(stdin) = &mut inside.stdin
                && let Ok(n @ 1..) = stdin.read(&mut data).await
            {
                put(&mut inside.stdout, &data[..n]).await;
            }
        }
        "zeroes" => {
            let zeroes = vec![0; 64 << 10];
            let mut left: usize = usize::try_from(number(1)).unwrap();
            while left > 0 {
                let n = left.min(zeroes.len());
                put(&mut inside.stdout, &zeroes[..n]).await;
                left -= n;
            }
        }
        "size" => {
            put(&mut inside.stdout, text(inside.first).as_bytes()).await;
            for _ in 0..number(1) {
                let size = inside.sizes.recv().await;
                put(&mut inside.stdout, text(size).as_bytes()).await;
            }
        }
        // Leaves a child behind that holds the output and is silent.
        "daemonize" => {
            put(&mut inside.stdout, b"started").await;
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(inside);
            });
            return Ended::Exited(0);
        }
        // Reads nothing and never ends.
        "deaf" => std::future::pending().await,
        _ => {}
    }
    Ended::Exited(if words[0] == "exit" { number(1) } else { 0 })
}

impl StandIn {
    fn begin(&self, words: Vec<String>, stdio: Stdio, first: Option<TerminalSize>) -> Process {
        let (mut stdin, mut stdout, mut stderr) = (None, None, None);
        let (sizes, sizes_inside) = mpsc::unbounded_channel();
        let mut inside = Inside { stdin: None, stdout: None, stderr: None, first, sizes: sizes_inside };
        let sender = |sender: pipe::Sender| -> Option<OwnedFd> { sender.into_nonblocking_fd().ok() };
        let receiver = |receiver: pipe::Receiver| -> Option<OwnedFd> { receiver.into_nonblocking_fd().ok() };
        if stdio.stdin {
            let (a, b) = pipe::pipe().unwrap();
            (stdin, inside.stdin) = (sender(a), Some(b));
        }
        if stdio.stdout {
            let (a, b) = pipe::pipe().unwrap();
            (inside.stdout, stdout) = (Some(a), receiver(b));
        }
        if stdio.stderr {
            let (a, b) = pipe::pipe().unwrap();
            (inside.stderr, stderr) = (Some(a), receiver(b));
        }
        self.alive.fetch_add(1, Ordering::SeqCst);
        let (tell, ended) = watch::channel(None);
        tokio::spawn(async move {
            tokio::select! {
                end = program(words, inside) => drop(tell.send(Some(end))),
                // Left by its client.
                () = tell.closed() => {}
            }
        });
        let control = Box::new(Controls { alive: self.alive.clone(), sizes, ended });
        Process { stdin, stdout, stderr, control }
    }
}

impl Backend for StandIn {
    async fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Result<Process, SandboxError> {
        if request.command[0] == "missing" {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }
        Ok(self.begin(request.command, request.stdio, size))
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process, SandboxError> {
        Ok(self.begin(vec!["cat".to_owned()], request.stdio, None))
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<TcpStream, SandboxError> {
        assert_eq!(sandbox, "pod");
        TcpStream::connect(("127.0.0.1", port)).await.map_err(failed)
    }
}
