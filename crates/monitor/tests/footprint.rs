//! What ten pods cost in memory. Only meaningful for the static release build:
//! `PODWRIGHT_MONITOR=<binary> cargo test -p podwright-monitor --test footprint -- --ignored --nocapture`

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
        // Its buffer goes back to the kernel after a quiet second.
        until("first line", || pod.log("c1").len() == 1);
        assert!(matches!(pod.client.call(Request::List), Reply::List { .. }));
    }
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let sizes: Vec<u64> = pods.iter().map(|pod| podwright_sys::proc::pss_kib(pod.pid()).unwrap()).collect();
    eprintln!("Pss of ten monitors in KiB: {sizes:?}");
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pods[9].pid())).unwrap();
    eprintln!("{rollup}");
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", pods[9].pid())).unwrap();
    for line in maps.lines() {
        if line.contains('-') && line.contains(' ') && !line.ends_with("kB")
            || line.starts_with("Pss:")
            || line.starts_with("Private_Dirty")
        {
            eprintln!("{line}");
        }
    }
    for pod in &mut pods {
        pod.shutdown();
        assert!(pod.client.events.iter().any(|event| matches!(event, Event::ContainerExited { .. })));
    }
    assert!(sizes.iter().all(|size| *size <= BUDGET_KIB), "{sizes:?}");
}
