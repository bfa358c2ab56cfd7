//! The settings of a pod's IPC and UTS namespaces: read by a thread of its own that enters them and ends at once.
//! Changes none.

use podwright_sys::namespace::{self, Namespace};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

/// Reads settings, by their paths below `/proc/sys`, in these namespaces, or in our own without one. Leaves out those
/// that this kernel lacks. Blocking.
///
/// # Errors
/// When a namespace cannot be entered, or a setting not be read.
pub fn read(
    ipc: Option<&Path>,
    uts: Option<&Path>,
    names: &[&'static str],
) -> io::Result<BTreeMap<&'static str, String>> {
    let open = |path: Option<&Path>| path.map(File::open).transpose();
    let (ipc, uts, names) = (open(ipc)?, open(uts)?, names.to_vec());
    let inside = move || {
        for (kind, file) in [(Namespace::Ipc, ipc), (Namespace::Uts, uts)] {
            if let Some(file) = file {
                namespace::enter(kind, file.as_fd())?;
            }
        }
        let mut found = BTreeMap::new();
        for name in names {
            match std::fs::read_to_string(Path::new("/proc/sys").join(name)) {
                Ok(text) => drop(found.insert(name, text.trim_end().to_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    };
    let thread = std::thread::Builder::new().name("pod-settings".to_owned()).spawn(inside)?;
    thread.join().map_err(|_| io::Error::other("the thread that reads settings died"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_namespaces_and_the_caller_stays_where_it_is() {
        let names = ["kernel/hostname", "kernel/shmmni", "kernel/no-such-setting"];
        let ours = read(None, None, &names).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let pod = std::thread::spawn(move || {
            namespace::unshare(Namespace::Ipc).unwrap();
            namespace::unshare(Namespace::Uts).unwrap();
            namespace::set_hostname("inside").unwrap();
            std::fs::write("/proc/sys/kernel/shmmni", "77").unwrap();
            tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
            let _ = ended.recv();
        });
        let pod_dir = Path::new("/proc").join(told.recv().unwrap()).join("ns");
        let inside = read(Some(&pod_dir.join("ipc")), Some(&pod_dir.join("uts")), &names).unwrap();
        drop(end);
        pod.join().unwrap();
        assert_eq!(
            inside,
            [("kernel/hostname", "inside".to_owned()), ("kernel/shmmni", "77".to_owned())].into()
        );
        assert_eq!(read(None, None, &names).unwrap(), ours);
        assert!(ours["kernel/hostname"] != "inside" && ours["kernel/shmmni"] != "77");
        assert!(read(Some(Path::new("/no/such")), None, &names).is_err());
    }
}
