//! What the streaming server needs from pods: processes as descriptors, ports as sockets. Tests replace it with a
//! stand-in.

use crate::model::TerminalSize;
use crate::sandbox::SandboxError;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use tokio::net::TcpStream;

/// A command to run with streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Full id of the container.
    pub container: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The streams to connect.
    pub stdio: Stdio,
}

/// A container's own process, for attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// Full id of the container.
    pub container: String,
    /// The streams to connect.
    pub stdio: Stdio,
}

/// Ports to forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Full id of the sandbox.
    pub sandbox: String,
    /// Ports of the CRI call. They bind only WebSocket clients: SPDY clients name a port with every stream.
    pub ports: Vec<u16>,
}

/// The streams to connect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stdio {
    /// The process has a terminal: stdout and stderr are one, and its size can be set.
    pub tty: bool,
    /// Client to process.
    pub stdin: bool,
    /// Process to client.
    pub stdout: bool,
    /// Process to client; not with a terminal.
    pub stderr: bool,
}

/// How a session's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The command ended with this code, 0 to 255.
    Exited(i32),
    /// The container that was attached to has ended.
    ContainerEnded,
    /// The client of an attach read too slowly; what it still receives is complete.
    TooSlow,
}

/// A process with our ends of its streams: non-blocking descriptors that an `AsyncFd` takes.
pub struct Process {
    /// Its drop is the end of the input.
    pub stdin: Option<OwnedFd>,
    /// Ends by EOF, or by EIO for a terminal.
    pub stdout: Option<OwnedFd>,
    /// Ends by EOF.
    pub stderr: Option<OwnedFd>,
    /// Dropping it leaves the session: a process with a terminal gets SIGHUP, any other runs on unobserved.
    pub control: Box<dyn Control>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").finish_non_exhaustive()
    }
}

/// A future behind a `dyn`.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Operations on a process besides its streams.
pub trait Control: Send + Sync {
    /// Sets the terminal's size.
    fn resize(&self, size: TerminalSize) -> Boxed<'_, Result<(), SandboxError>>;

    /// Waits for the end. Cancelling it loses nothing; it answers once.
    fn ended(&self) -> Boxed<'_, Result<Ended, SandboxError>>;
}

/// The pods, as the streaming server sees them. Dropping a future gives the call up.
pub trait Backend: Send + Sync + 'static {
    /// Runs a command; `size` is its terminal's size at the start.
    fn exec(
        &self,
        request: ExecRequest,
        size: Option<TerminalSize>,
    ) -> impl Future<Output = Result<Process, SandboxError>> + Send;

    /// Connects to a container's own process.
    fn attach(&self, request: AttachRequest) -> impl Future<Output = Result<Process, SandboxError>> + Send;

    /// Connects to a port inside of a pod.
    fn port_forward(
        &self,
        sandbox: &str,
        port: u16,
    ) -> impl Future<Output = Result<TcpStream, SandboxError>> + Send;
}
