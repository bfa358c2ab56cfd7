//! Memory of ten pods. Only meaningful for the static release build: `PODWRIGHT_MONITOR=<binary> cargo test -p
//! podwright-monitor --test footprint -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(clippy::print_stderr, reason = "the figures are its purpose")]

mod support;

use podwright_monitor_proto::{Event, Reply, Request};
use support::{Pod, until};

/// Per pod with one running container, the tenth of ten, in KiB.
const BUDGET_KIB: u64 = 256;

#[test]
#[ignore = "needs the static release build"]
fn ten_pods() {
    let mut pods: Vec<Pod> = (0..10).map(|number| Pod::launch(&format!("size{number}"), |_| {})).collect();
    for pod in &mut pods {
        pod.run("c1", &["sh", "-c", "echo hello; sleep 1000"]);
        // Its buffer returns to the kernel after a quiet second.
        until("first line", || pod.log("c1").len() == 1);
        assert!(matches!(pod.client.call(Request::List), Reply::List { .. }));
    }
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let sizes: Vec<u64> = pods.iter().map(|pod| podwright_sys::proc::pss_kib(pod.pid()).unwrap()).collect();
    eprintln!("Pss of ten monitors in KiB: {sizes:?}");
    let init = Pod::launch("sizeinit", |launch| launch.namespaces.pid = true);
    let pss = podwright_sys::proc::pss_kib(init.record.init.unwrap().pid).unwrap();
    eprintln!("Pss of a pod init in KiB: {pss}");
    let mut init = init;
    init.shutdown();
    for pod in &mut pods {
        pod.shutdown();
        assert!(pod.client.events.iter().any(|event| matches!(event, Event::ContainerExited { .. })));
    }
    assert!(sizes.iter().all(|size| *size <= BUDGET_KIB), "{sizes:?}");
}

#[test]
#[ignore = "takes a while"]
fn a_gigabyte_of_output() {
    for (name, command) in [
        ("no line ends", "dd if=/dev/zero bs=65536 count=16384"),
        (
            "lines of 60 bytes",
            "yes 0123456789012345678901234567890123456789012345678901234567 | dd bs=65536 count=16384 iflag=fullblock",
        ),
    ] {
        let mut pod = Pod::launch("load", |_| {});
        std::os::unix::fs::symlink("busybox", pod.path("yes")).unwrap();
        let start = std::time::Instant::now();
        pod.bundle("c1", &["sh", "-c", &command.replace("yes ", "busybox yes ")], |_| {});
        let mut request = pod.run_request("c1");
        // A place where writing costs nothing, so that only the monitor is measured.
        request.log_path = Some(format!("/dev/shm/podwright-test-{}.log", pod.id));
        pod.run_with(request.clone());
        let peak = || podwright_sys::proc::pss_kib(pod.pid()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let during = peak();
        assert_eq!(pod.client.exit_of("c1").exit_code, 0);
        let seconds = start.elapsed().as_secs_f64();
        let path = request.log_path.unwrap();
        let size = std::fs::metadata(&path).unwrap().len();
        std::fs::remove_file(&path).unwrap();
        eprintln!("{name}: 1 GiB in {seconds:.2} s, log of {size} bytes, Pss meanwhile {during} KiB");
        pod.shutdown();
    }
}
