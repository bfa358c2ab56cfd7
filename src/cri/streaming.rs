//! Decodes Exec, Attach and PortForward: checks the request here; the streaming server executes it when the client uses
//! the URL.

use super::lookup::required;
use super::proto as pb;
use super::status::{status, streaming_status};
use crate::sandbox::{Manager, SandboxError};
use crate::streaming::{
    AttachRequest, ExecRequest, MAX_PORTS, PortForwardRequest, Stdio, StreamingError, Urls,
};
use tonic::Status;

fn refused(error: SandboxError) -> Status {
    status(&error)
}

fn no_url(error: StreamingError) -> Status {
    streaming_status(&error)
}

/// Streams that a client may connect, as in containerd and CRI-O.
fn checked(stdio: Stdio) -> Result<Stdio, Status> {
    if stdio.tty && stdio.stderr {
        return Err(Status::invalid_argument(
            "stderr: a terminal has none, tty and stderr cannot both be true",
        ));
    }
    if !stdio.stdin && !stdio.stdout && !stdio.stderr {
        return Err(Status::invalid_argument("one of stdin, stdout and stderr must be true"));
    }
    Ok(stdio)
}

pub(super) fn exec(pods: &Manager, urls: &Urls, r: pb::ExecRequest) -> Result<pb::ExecResponse, Status> {
    required("container_id", &r.container_id)?;
    let stdio = checked(Stdio { tty: r.tty, stdin: r.stdin, stdout: r.stdout, stderr: r.stderr })?;
    if r.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd: is empty"));
    }
    let container = pods.running_container("execute a command in", &r.container_id).map_err(refused)?;
    let request = ExecRequest { container: container.to_string(), command: r.cmd, stdio };
    Ok(pb::ExecResponse { url: urls.exec(request).map_err(no_url)? })
}

pub(super) fn attach(
    pods: &Manager,
    urls: &Urls,
    r: pb::AttachRequest,
) -> Result<pb::AttachResponse, Status> {
    required("container_id", &r.container_id)?;
    let stdio = checked(Stdio { tty: r.tty, stdin: r.stdin, stdout: r.stdout, stderr: r.stderr })?;
    let container = pods.running_container("attach to", &r.container_id).map_err(refused)?;
    let request = AttachRequest { container: container.to_string(), stdio };
    Ok(pb::AttachResponse { url: urls.attach(request).map_err(no_url)? })
}

pub(super) fn port_forward(
    pods: &Manager,
    urls: &Urls,
    r: pb::PortForwardRequest,
) -> Result<pb::PortForwardResponse, Status> {
    required("pod_sandbox_id", &r.pod_sandbox_id)?;
    if r.port.len() > MAX_PORTS {
        return Err(Status::invalid_argument(format!("port: more than {MAX_PORTS} at once")));
    }
    let port = |port: i32| {
        let port = u16::try_from(port).ok().filter(|port| *port > 0);
        port.ok_or_else(|| Status::invalid_argument("port: must be from 1 to 65535"))
    };
    let ports = r.port.into_iter().map(port).collect::<Result<_, _>>()?;
    let sandbox = pods.ready_pod("forward a port", &r.pod_sandbox_id).map_err(refused)?;
    let request = PortForwardRequest { sandbox: sandbox.to_string(), ports };
    Ok(pb::PortForwardResponse { url: urls.port_forward(request).map_err(no_url)? })
}
