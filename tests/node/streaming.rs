//! Exec, attach and port-forward from end to end, by the clients that kubectl is made of (tests/streaming-client).

use crate::support::{Ability, Node, container, refused, runtime_can, words};
use podwright::cri::proto as pb;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tonic::Code;

/// What kubectl speaks to old and to new servers.
const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];
/// For a client to end that must end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the client, with pipes for its three streams.
fn begin_client(transport: &str, flags: &[&str]) -> Child {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/bin/streaming-client");
    Command::new(&program)
        .args(["-transport", transport])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; `make streaming-client` builds it", program.display()))
}

/// Runs the client to its end with this on its standard input.
pub(crate) async fn client(transport: &str, flags: &[&str], input: &[u8]) -> Output {
    let mut child = begin_client(transport, flags);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A client that does not read its input closes it.
    let feeding = tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    let output =
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the client ends").unwrap();
    feeding.await.unwrap();
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Node {
    pub(crate) async fn exec_url(&mut self, id: &str, command: &[&str], tty: bool, stdin: bool) -> String {
        let request = pb::ExecRequest {
            container_id: id.to_owned(),
            cmd: words(command),
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };
        self.runtime.exec(request).await.unwrap().into_inner().url
    }
}

#[tokio::test]
async fn commands_run_with_their_streams() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("exec", &["sleep", "1000"]).await;
    for transport in TRANSPORTS {
        let url = node.exec_url(&id, &["sh", "-c", "echo out; echo err >&2; exit 7"], false, false).await;
        let output = client(transport, &["stream", &url], b"").await;
        assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("out\n", "err\n"));
        assert_eq!(output.status.code(), Some(7));
        // Used up.
        let output = client(transport, &["stream", &url], b"").await;
        assert_eq!(output.status.code(), Some(255), "{}", text(&output.stderr));

        let input: Vec<u8> = (0..2_000_000u32).flat_map(u32::to_le_bytes).collect();
        let url = node.exec_url(&id, &["cat"], false, true).await;
        let output = client(transport, &["-stdin", "stream", &url], &input).await;
        assert!(output.status.success() && output.stdout == input, "{}", text(&output.stderr));

        let url =
            node.exec_url(&id, &["sh", "-c", "stty size; sleep 2; stty size; echo $TERM"], true, true).await;
        let flags = ["-tty", "-stdin", "-sizes", "99x33,100x50", "stream", &url];
        let output = client(transport, &flags, b"").await;
        let shown = text(&output.stdout).replace('\r', "");
        // One that does not take the size with the command has it a moment later.
        let late = shown.replace("stty: standard input\n", "33 99\n");
        let shown = if runtime_can(Ability::FirstSize) { shown } else { late };
        assert_eq!(shown, "33 99\n50 100\nxterm\n", "{transport}");

        let url = node.exec_url(&id, &["no-such-program"], false, false).await;
        let output = client(transport, &["stream", &url], b"").await;
        assert!(text(&output.stderr).contains("no-such-program"), "{}", text(&output.stderr));
    }
    node.finish().await;
}

#[tokio::test]
async fn clients_attach_to_a_container_and_end_its_input() {
    let mut node = Node::with_busybox().await;
    let config = node.pod("attach");
    let pod = node.run(&config).await.unwrap();
    for transport in TRANSPORTS {
        let mut shell = container(transport, &["sh"]);
        (shell.stdin, shell.stdin_once) = (true, true);
        let id = node.create(&pod, &config, shell).await.unwrap();
        node.start(&id).await.unwrap();
        let request = pb::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        let url = node.runtime.attach(request).await.unwrap().into_inner().url;
        let script = b"echo hello\necho wrong >&2\necho bye\n";
        // Over SPDY the end of the input ends the shell. Over WebSocket the fifth protocol does it too.
        let output = client(transport, &["-stdin", "stream", &url], script).await;
        assert_eq!(text(&output.stdout), "hello\nbye\n", "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "wrong\n");
        assert_eq!(node.exited(&id).await.exit_code, 0);
        // The log has it all too.
        assert!(node.log("attach", transport).iter().any(|line| line.ends_with("stdout F bye")));
    }
    node.finish().await;
}

#[tokio::test]
async fn ports_are_forwarded_into_the_pod() {
    let mut node = Node::with_busybox().await;
    let (pod, _) = node.running("forward", &["httpd", "-f", "-p", "127.0.0.1:80", "-h", "/etc"]).await;
    for transport in TRANSPORTS {
        let request = pb::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![] };
        let url = node.runtime.port_forward(request.clone()).await.unwrap().into_inner().url;
        let flags = ["-requests", "300", "-path", "/group", "forward", &url, "80"];
        let output = client(transport, &flags, b"").await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n");
        // Where nobody listens.
        let url = node.runtime.port_forward(request).await.unwrap().into_inner().url;
        let output = client(transport, &["forward", &url, "81"], b"").await;
        assert_eq!(output.status.code(), Some(255));
        let words = text(&output.stderr);
        assert!(words.contains("error forwarding port 81 to pod") && words.contains("refused"), "{words}");
    }
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_with_a_code() {
    let mut node = Node::with_busybox().await;
    let (pod, id) = node.running("refuse", &["sleep", "1000"]).await;
    let good = pb::ExecRequest {
        container_id: id.clone(),
        cmd: words(&["true"]),
        stdout: true,
        ..Default::default()
    };
    for (request, code, says) in [
        (
            pb::ExecRequest { container_id: String::new(), ..good.clone() },
            Code::InvalidArgument,
            "container_id",
        ),
        (pb::ExecRequest { container_id: "nope".into(), ..good.clone() }, Code::NotFound, "nope"),
        (pb::ExecRequest { cmd: vec![], ..good.clone() }, Code::InvalidArgument, "cmd"),
        (pb::ExecRequest { cmd: vec!["x".repeat(3 << 20)], ..good.clone() }, Code::InvalidArgument, "bytes"),
        (pb::ExecRequest { stdout: false, ..good.clone() }, Code::InvalidArgument, "stdin, stdout"),
        (pb::ExecRequest { tty: true, stderr: true, ..good.clone() }, Code::InvalidArgument, "tty"),
    ] {
        refused(node.runtime.exec(request).await, code, &[says]);
    }
    for port in [0, -1, 65_536] {
        let request = pb::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![port] };
        refused(node.runtime.port_forward(request).await, Code::InvalidArgument, &["port"]);
    }
    // Unused URLs: beyond a thousand there are no more for now.
    let mut full = None;
    for _ in 0..1001 {
        full = node.runtime.exec(good.clone()).await.err();
        if full.is_some() {
            break;
        }
    }
    assert_eq!(full.unwrap().code(), Code::ResourceExhausted);
    node.stop(&id, 0).await.unwrap();
    refused(node.runtime.exec(good).await, Code::FailedPrecondition, &["exited"]);
    node.stop_pod(&pod).await.unwrap();
    let request = pb::PortForwardRequest { pod_sandbox_id: pod, port: vec![] };
    refused(node.runtime.port_forward(request).await, Code::FailedPrecondition, &["not ready"]);
    node.finish().await;
}

#[tokio::test]
async fn a_restart_is_told_and_hurts_neither_container_nor_command() {
    let mut node = Node::with_busybox().await;
    let (_, id) = node.running("restart", &["sleep", "1000"]).await;
    let script = "echo begun; while [ ! -e /tmp/go ]; do sleep 0.05; done; touch /tmp/done";
    let url = node.exec_url(&id, &["sh", "-c", script], false, false).await;
    let mut session = begin_client("spdy", &["stream", &url]);
    let mut begun = [0; 6];
    session.stdout.as_mut().unwrap().read_exact(&mut begun).await.unwrap();
    assert_eq!(text(&begun), "begun\n");
    node.daemon.restart().unwrap();
    let output =
        tokio::time::timeout(PATIENCE, session.wait_with_output()).await.expect("the client ends").unwrap();
    assert!(text(&output.stderr).contains("being stopped or restarted"), "{}", text(&output.stderr));
    let done = async {
        // The first calls may still go to the daemon that ended.
        while node.exec(&id, &["touch", "/tmp/go"]).await.is_err() {}
        while node.exec(&id, &["test", "-e", "/tmp/done"]).await.unwrap().exit_code != 0 {}
    };
    tokio::time::timeout(PATIENCE, done).await.expect("the command runs on");
    node.finish().await;
}
