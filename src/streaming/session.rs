//! One exec or attach from start to verdict, whatever carries it. Owns the order of the end: a process's output is drained
//! before its status is told.

use super::backend::{AttachRequest, Backend, ExecRequest, Process, Stdio};
use super::registry::Meter;
use super::status::{ENDING, Verdict};
use super::wires::{Input, Output, Progress, Resizes, carry_in, carry_out, carry_sizes};
use crate::sandbox::SandboxError;
use std::future::{Future, pending};
use std::time::Duration;

/// How long the first size of a terminal is waited for. A client sends it as soon as the stream is there; one without a
/// terminal of its own sends none.
const FIRST_SIZE_WAIT: Duration = Duration::from_millis(50);

/// What a client wants to talk to.
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

/// Runs the session. None when the client is gone: then there is nobody to tell.
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
    // With a terminal the end of the input has to be typed, for a command; a container's own input is not ours to end.
    let eot = matches!(&wanted, Wanted::Exec(exec) if exec.stdio.tty);
    let mut resizes = wires.resize.map(Resizes::new);
    let process = tokio::select! {
        process = start(backend, wanted, resizes.as_mut()) => process,
        () = &mut gone => return None,
        () = &mut ending => return Some(Verdict::Failure(ENDING.to_owned())),
    };
    let Process { stdin, stdout, stderr, control } = match process {
        Ok(process) => process,
        Err(error) => return Some(Verdict::Failure(error.to_string())),
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
        // What a child that was left behind still writes is passed on; when it is silent it is not waited for.
        // In this order: what is there is read before it is looked whether nothing came.
        tokio::select! {
            biased;
            sent = &mut out => if sent.is_err() { return None },
            () = progress.until_quiet(quiet) => {}
            () = &mut gone => return None,
        }
    }
    Some(Verdict::of(outcome))
}

/// What may end a session from outside.
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
