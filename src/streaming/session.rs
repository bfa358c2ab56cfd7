//! One exec or attach from start to verdict over any carrier. Owns the order of the end: drains a process's output
//! before it reports the status.

use super::backend::{AttachRequest, Backend, ExecRequest, Process, Stdio};
use super::registry::Meter;
use super::status::{ENDING, Verdict};
use super::wires::{Input, Output, Progress, Resizes, carry_in, carry_out, carry_sizes};
use crate::model::plain;
use crate::sandbox::SandboxError;
use std::future::{Future, pending};
use std::time::Duration;

/// Limit on waiting for a terminal's first size. A client sends it with the stream; one without a terminal sends none.
const FIRST_SIZE_WAIT: Duration = Duration::from_millis(50);

/// The streams that a client requests.
#[derive(Debug, Clone)]
pub(super) enum Wanted {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Wanted {
    pub(super) fn stdio(&self) -> Stdio {
        match self {
            Self::Exec(exec) => exec.stdio,
            Self::Attach(attach) => attach.stdio,
        }
    }
}

/// A session's streams.
#[derive(Debug, Default)]
pub(super) struct Wires {
    pub(super) stdin: Option<Input>,
    pub(super) resize: Option<Input>,
}

/// Where output goes.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
}

/// Runs the session. None if the client is gone: nothing remains to report to.
pub(super) async fn run<B: Backend>(
    backend: &B,
    wanted: Wanted,
    wires: Wires,
    outputs: &Outputs,
    ends: Ends<impl Future<Output = ()>, impl Future<Output = ()>>,
    quiet: Duration,
    meter: &Meter,
) -> Option<Verdict> {
    let Ends { gone, ending } = ends;
    let mut gone = std::pin::pin!(gone);
    let mut ending = std::pin::pin!(ending);
    // In a terminal the end of a command's input is typed (EOT); a container's own input is not ours to end.
    let eot = matches!(&wanted, Wanted::Exec(exec) if exec.stdio.tty);
    let mut resizes = wires.resize.map(Resizes::new);
    let process = tokio::select! {
        process = start(backend, wanted, resizes.as_mut()) => process,
        () = &mut gone => return None,
        () = &mut ending => return Some(Verdict::Failure(ENDING.to_owned())),
    };
    let Process { stdin, stdout, stderr, control } = match process {
        Ok(process) => process,
        // Of words that a container shapes, to a person's terminal.
        Err(error) => return Some(Verdict::Failure(plain::lines(&error.to_string()).into_owned())),
    };
    let progress = Progress::default();
    let mut out = Box::pin(async {
        tokio::try_join!(
            carry_out(stdout, outputs.stdout.as_ref(), &progress, meter),
            carry_out(stderr, outputs.stderr.as_ref(), &progress, meter),
        )
    });
    let mut carried = false;
    let outcome = {
        let mut inward = Box::pin(async {
            tokio::join!(carry_in(stdin, wires.stdin, eot, meter), carry_sizes(resizes, &*control),);
            pending::<()>().await;
        });
        let mut ended = control.ended();
        loop {
            tokio::select! {
                outcome = &mut ended => break outcome,
                sent = &mut out, if !carried => match sent {
                    Ok(_) => carried = true,
                    Err(_) => return None,
                },
                () = &mut inward => {}
                () = &mut gone => return None,
                () = &mut ending => return Some(Verdict::Failure(ENDING.to_owned())),
            }
        }
    };
    if !carried {
        // Passes on what a leftover child still writes, and does not wait for a silent one. In this order: reads
        // pending output before checking for silence.
        tokio::select! {
            biased;
            sent = &mut out => if sent.is_err() { return None },
            () = progress.until_quiet(quiet) => {}
            () = &mut gone => return None,
        }
    }
    Some(Verdict::of(outcome))
}

/// Events outside that may end a session.
#[derive(Debug)]
pub(super) struct Ends<G, E> {
    /// The client is gone.
    pub(super) gone: G,
    /// The daemon ends.
    pub(super) ending: E,
}

async fn start<B: Backend>(
    backend: &B,
    wanted: Wanted,
    resizes: Option<&mut Resizes>,
) -> Result<Process, SandboxError> {
    let size = match resizes {
        Some(resizes) => tokio::time::timeout(FIRST_SIZE_WAIT, resizes.next()).await.ok().flatten(),
        None => None,
    };
    match wanted {
        Wanted::Exec(request) => backend.exec(request, size).await,
        Wanted::Attach(request) => {
            let process = backend.attach(request).await?;
            if let Some(size) = size
                && let Err(error) = process.control.resize(size).await
            {
                tracing::debug!(%error, "cannot resize a container's terminal");
            }
            Ok(process)
        }
    }
}
