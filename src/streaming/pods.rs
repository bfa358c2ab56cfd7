//! The pods as a [`Backend`].

use super::backend::{AttachRequest, Backend, Boxed, Control, Ended, ExecRequest, Process};
use crate::model::TerminalSize;
use crate::sandbox::{
    AttachEnd, AttachSession, AttachStream, ExecSession, ExecStream, Manager, SandboxError,
};
use std::path::Path;
use tokio::net::TcpStream;

impl Backend for Manager {
    async fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Result<Process, SandboxError> {
        let ExecRequest { container, command, stdio } = request;
        let ask = ExecStream {
            command,
            tty: stdio.tty,
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
            size,
        };
        let mut session = self.exec_stream(&container, ask).await?;
        Ok(Process {
            stdin: session.stdin.take(),
            stdout: session.stdout.take(),
            stderr: session.stderr.take(),
            control: Box::new(session),
        })
    }

    async fn attach(&self, request: AttachRequest) -> Result<Process, SandboxError> {
        let stdio = request.stdio;
        let ask = AttachStream { stdin: stdio.stdin, stdout: stdio.stdout, stderr: stdio.stderr };
        let mut session = Manager::attach(self, &request.container, ask).await?;
        Ok(Process {
            stdin: session.stdin.take(),
            stdout: session.stdout.take(),
            stderr: session.stderr.take(),
            control: Box::new(session),
        })
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<TcpStream, SandboxError> {
        Manager::port_forward(self, sandbox, port).await
    }
}

impl Control for ExecSession {
    fn resize(&self, size: TerminalSize) -> Boxed<'_, Result<(), SandboxError>> {
        let outcome = ExecSession::resize(self, size).map_err(|source| SandboxError::Io {
            operation: "resize",
            path: Path::new("a terminal").into(),
            source,
        });
        Box::pin(async { outcome })
    }

    fn ended(&self) -> Boxed<'_, Result<Ended, SandboxError>> {
        Box::pin(async { Ok(Ended::Exited(self.wait().await?.code)) })
    }
}

impl Control for AttachSession {
    fn resize(&self, size: TerminalSize) -> Boxed<'_, Result<(), SandboxError>> {
        Box::pin(AttachSession::resize(self, size))
    }

    fn ended(&self) -> Boxed<'_, Result<Ended, SandboxError>> {
        Box::pin(async {
            Ok(match self.wait().await? {
                AttachEnd::ContainerEnded => Ended::ContainerEnded,
                AttachEnd::TooSlow => Ended::TooSlow,
            })
        })
    }
}
