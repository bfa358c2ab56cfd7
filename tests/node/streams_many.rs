//! Many streams, one after the other and at once: what they take while they are there, and that nothing of them stays. The
//! clients are those of tests/streaming-client, in one process.

#![allow(clippy::print_stderr, reason = "what was measured is told")]

use crate::support::{Node, container};
use podwright_testkit::daemon::default_binary;
use podwright_testkit::patience;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// For what a session leaves to be gone: threads that are idle for 5 s, commands that run on until they are done.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon may keep after any number of sessions: pages that its allocator holds for the next burst. Measured on
/// top of a warm-up of the same kind, so that it is no matter how many sessions there were: a leak of one page a session
/// would be 40 MiB after 10,000.
const DAEMON_SLACK_KIB: u64 = 4 << 10;
/// The same for a monitor, which gives its buffers back when nothing happened for a while.
const MONITOR_SLACK_KIB: u64 = 128;

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Processes below it, theirs too.
    offspring: usize,
    /// Memory of its own: what is mapped from its file comes and goes with the page cache.
    kib: u64,
}

fn held(pid: u64) -> Held {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let own = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:")).unwrap();
    let kib = own.trim().split(' ').next().unwrap().parse().unwrap();
    Held { descriptors: count("fd"), threads: count("task"), offspring: offspring(pid), kib }
}

fn offspring(pid: u64) -> usize {
    let mut found = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            found += 1 + offspring(child.parse().unwrap());
        }
    }
    found
}

/// A pod to have sessions with.
struct Subject {
    pod: String,
    shell: String,
    cat: String,
    monitor: u64,
}

impl Node {
    async fn subject(&mut self, name: &str) -> Subject {
        let config = self.pod(name);
        let pod = self.run(&config).await.unwrap();
        let web = container("web", &["httpd", "-f", "-p", "80", "-h", "/etc"]);
        let mut cat = container("cat", &["cat"]);
        cat.stdin = true;
        let (shell, cat) =
            (self.create(&pod, &config, web).await.unwrap(), self.create(&pod, &config, cat).await.unwrap());
        self.start(&shell).await.unwrap();
        self.start(&cat).await.unwrap();
        let monitor = self.monitor(&pod).await;
        Subject { pod, shell, cat, monitor }
    }

    async fn monitor(&mut self, pod: &str) -> u64 {
        use podwright::cri::proto as pb;
        let request = pb::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
        let info = self.runtime.pod_sandbox_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        info["monitor"]["pid"].as_u64().unwrap()
    }

    fn daemon_pid(&self) -> u64 {
        self.daemon.pid().unwrap().into()
    }

    fn client(&self) -> Command {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/bin/streaming-client");
        assert!(program.is_file(), "`make streaming-client` builds {}", program.display());
        let mut command = Command::new(program);
        command.arg("-cri").arg(self.scratch.socket()).kill_on_drop(true);
        command
    }

    async fn soak(&self, subject: &Subject, sessions: usize) {
        let status = self
            .client()
            .args(["-container", &subject.shell, "-attach", &subject.cat, "-pod", &subject.pod])
            .args(["-sessions", &sessions.to_string(), "soak"])
            .status()
            .await
            .unwrap();
        assert!(status.success(), "the sessions failed: {status}");
    }

    /// Opens sessions and keeps them. Answers how many are open, and why others are not.
    async fn hold(&self, lines: &[String]) -> (Holding, usize, BTreeMap<String, usize>) {
        let mut child = self
            .client()
            .args(["-parallel", "16", "hold"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        input.write_all(format!("{}\n\n", lines.join("\n")).as_bytes()).await.unwrap();
        let (mut output, mut open, mut refused) = (BufReader::new(output).lines(), 0, BTreeMap::new());
        while let Some(line) = output.next_line().await.unwrap() {
            let number = |text: &str| text.parse::<usize>().unwrap();
            match line.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["open", count] => open = number(count),
                ["refused", count, words] => drop(refused.insert(words.to_owned(), number(count))),
                ["end"] => break,
                _ => panic!("{line}"),
            }
        }
        (Holding { child, input }, open, refused)
    }

    fn sessions(&self) -> Vec<serde_json::Value> {
        let output = std::process::Command::new(default_binary())
            .args(["status", "--output", "json", "--config"])
            .arg(self.scratch.config_file())
            .output()
            .unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["sessions"].as_array().unwrap().clone()
    }
}

/// Open sessions.
struct Holding {
    child: Child,
    input: ChildStdin,
}

impl Holding {
    /// Ends them; each must have lived until now.
    async fn end(self) {
        let Self { mut child, input } = self;
        drop(input);
        let status = child.wait().await.unwrap();
        assert!(status.success(), "held sessions did not end well: {status}");
    }
}

/// Waits until a process holds no more than before. Memory only has to stay within its slack.
async fn until_back(who: &str, pid: u64, before: Held, slack_kib: u64) {
    let deadline = tokio::time::Instant::now() + PATIENCE * patience();
    loop {
        let now = held(pid);
        if now.descriptors <= before.descriptors
            && now.threads <= before.threads
            && now.offspring <= before.offspring
            && now.kib <= before.kib + slack_kib
        {
            eprintln!("{who}: {before:?} before, {now:?} after");
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{who} keeps something: {before:?}, then {now:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// `make soak` has 10,000.
fn soak_sessions() -> usize {
    std::env::var("PODWRIGHT_SOAK_SESSIONS").map_or(250, |text| text.parse().unwrap())
}

#[tokio::test]
async fn nothing_stays_of_many_sessions_however_they_end() {
    let mut node = Node::with_busybox().await;
    let subject = node.subject("soak").await;
    let quiet = offspring(subject.monitor);
    // Every kind and way several times, also in the short run.
    node.soak(&subject, (soak_sessions() / 10).max(100)).await;
    // What the warm-up left to end by itself.
    let deadline = tokio::time::Instant::now() + PATIENCE * patience();
    while !node.sessions().is_empty() || offspring(subject.monitor) > quiet {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", node.sessions());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (daemon, monitor) = (held(node.daemon_pid()), held(subject.monitor));
    node.soak(&subject, soak_sessions()).await;
    until_back("daemon", node.daemon_pid(), daemon, DAEMON_SLACK_KIB).await;
    until_back("monitor", subject.monitor, monitor, MONITOR_SLACK_KIB).await;
    assert!(node.sessions().is_empty());
    // Both containers were there all the time.
    assert_eq!(node.output(&subject.shell, &["echo", "fine"]).await, "fine");
    assert_eq!(node.output(&subject.cat, &["echo", "fine"]).await, "fine");
    node.finish().await;
}

#[tokio::test]
async fn a_thousand_sessions_at_once_are_served_and_the_next_are_told() {
    let mut node = Node::with_busybox().await;
    let mut subjects = Vec::new();
    for name in ["one", "two", "three", "four", "five"] {
        subjects.push(node.subject(name).await);
    }
    // Everything has been used once.
    node.soak(&subjects[0], 30).await;
    let daemon = held(node.daemon_pid());
    let monitors: Vec<_> = subjects.iter().map(|subject| held(subject.monitor)).collect();
    let mut lines = Vec::new();
    for subject in &subjects {
        for (count, kind, id) in
            [(60, "exec", &subject.shell), (100, "attach", &subject.cat), (40, "forward", &subject.pod)]
        {
            let transport = |n| if n % 4 == 0 { "websocket" } else { "spdy" };
            lines.extend((0..count).map(|n| format!("{kind} {id} {}", transport(n))));
        }
    }
    let (thousand, open, refused) = node.hold(&lines).await;
    assert_eq!((open, refused), (1000, BTreeMap::new()));
    let now = held(node.daemon_pid());
    let growth = now.kib.saturating_sub(daemon.kib);
    let of_monitors: u64 = subjects
        .iter()
        .zip(&monitors)
        .map(|(s, before)| held(s.monitor).kib.saturating_sub(before.kib))
        .sum();
    eprintln!(
        "1000 sessions: daemon {growth} KiB and {} descriptors more, 5 monitors {of_monitors} KiB more",
        now.descriptors - daemon.descriptors
    );
    // What one may take at the very most is in the documentation; idle ones are far from it.
    assert!(growth < 1000 * 450 && of_monitors < 1000 * 64);
    let sessions = node.sessions();
    let of = |kind: &str| sessions.iter().filter(|session| session["kind"] == kind).count();
    assert_eq!((of("exec"), of("attach"), of("portforward")), (300, 500, 200));
    let exec = sessions.iter().find(|session| session["kind"] == "exec").unwrap();
    assert!(exec["container_name"] == "web" && exec["received_bytes"].as_u64() > Some(0), "{exec}");

    // 24 more is what streaming.max_sessions leaves.
    let more: Vec<_> = subjects.iter().flat_map(|s| vec![format!("attach {}", s.cat); 12]).collect();
    let (few, open, refused) = node.hold(&more).await;
    assert_eq!((open, refused.values().sum::<usize>()), (24, 36), "{refused:?}");
    assert!(refused.keys().all(|words| words.contains("streaming.max_sessions")), "{refused:?}");
    few.end().await;
    // The thousand were not disturbed by that.
    thousand.end().await;

    // What one pod may have; the rest is for commands.
    let (crowd, open, refused) = node.hold(&vec![format!("attach {}", subjects[0].cat); 250]).await;
    assert_eq!((open, refused.values().sum::<usize>()), (200, 50), "{refused:?}");
    assert!(refused.keys().all(|words| words.contains("as many as it may")), "{refused:?}");
    crowd.end().await;

    until_back("daemon", node.daemon_pid(), daemon, 2 * DAEMON_SLACK_KIB).await;
    for (subject, before) in subjects.iter().zip(monitors) {
        until_back("monitor", subject.monitor, before, MONITOR_SLACK_KIB).await;
    }
    node.finish().await;
}
