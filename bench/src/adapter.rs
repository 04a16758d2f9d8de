//! What the kernel says of a real RDMA device: firmware, driver, and the network interface behind it.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

/// Of the device of this name (`mlx5_0`, or `mlx5_0:2` for its second port); none where the kernel knows no such device,
/// as of the soft one.
pub(crate) fn record(name: &str) -> Option<Map<String, Value>> {
    under(Path::new("/sys/class"), name)
}

fn under(class: &Path, name: &str) -> Option<Map<String, Value>> {
    let (name, port) = name.split_once(':').unwrap_or((name, "1"));
    if name.is_empty() || name.starts_with('.') || name.contains('/') || port.parse::<u8>().is_err() {
        return None;
    }
    let device = class.join("infiniband").join(name);
    if !device.is_dir() {
        return None;
    }
    let line = |path: &str| {
        let text = fs::read_to_string(device.join(path)).ok()?;
        let line = text.lines().next()?.trim().to_owned();
        (!line.is_empty()).then_some(line)
    };
    let target = |path: &str| Some(fs::read_link(device.join(path)).ok()?.file_name()?.to_str()?.to_owned());
    // Soft-RoCE has no device of its own below it; its parent is the interface.
    let interface = line(&format!("ports/{port}/gid_attrs/ndevs/0")).or_else(|| line("parent"));
    let of_interface = |interface: &str, what: &str| {
        let text = fs::read_to_string(class.join("net").join(interface).join(what)).ok()?;
        Some(text.trim().to_owned())
    };
    let inner = interface.as_deref().filter(|interface| !interface.contains('/') && !interface.starts_with('.'));
    let found = [
        ("firmware", line("fw_ver")),
        ("board", line("board_id")),
        ("kind", line("hca_type")),
        ("driver", target("device/driver")),
        ("driver_version", line("device/driver/module/version")),
        ("link", line(&format!("ports/{port}/link_layer"))),
        ("speed", line(&format!("ports/{port}/rate"))),
        ("state", line(&format!("ports/{port}/state"))),
        ("interface", inner.map(str::to_owned)),
        ("interface_mtu", inner.and_then(|interface| of_interface(interface, "mtu"))),
    ];
    Some(found.into_iter().filter_map(|(what, found)| Some((what.to_owned(), found?.into()))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_says_its_firmware_its_driver_and_its_interface() {
        let class = tempfile::tempdir().expect("a directory");
        let at = |path: &str| class.path().join(path);
        let write = |path: &str, text: &str| {
            fs::create_dir_all(at(path).parent().expect("a parent")).expect("made");
            fs::write(at(path), text).expect("written");
        };
        write("infiniband/mlx5_0/fw_ver", "16.35.2000\n");
        write("infiniband/mlx5_0/board_id", "MT_0000000008\n");
        write("infiniband/mlx5_0/hca_type", "\n");
        write("infiniband/mlx5_0/ports/2/rate", "100 Gb/sec (4X EDR)\n");
        write("infiniband/mlx5_0/ports/2/gid_attrs/ndevs/0", "eth7\n");
        write("net/eth7/mtu", "9000\n");
        write("drivers/mlx5_core/module/version", "5.0\n");
        fs::create_dir_all(at("infiniband/mlx5_0/device")).expect("made");
        std::os::unix::fs::symlink(at("drivers/mlx5_core"), at("infiniband/mlx5_0/device/driver")).expect("made");
        let found = under(class.path(), "mlx5_0:2").expect("it is there");
        for (what, text) in [
            ("firmware", "16.35.2000"),
            ("board", "MT_0000000008"),
            ("driver", "mlx5_core"),
            ("driver_version", "5.0"),
            ("speed", "100 Gb/sec (4X EDR)"),
            ("interface", "eth7"),
            ("interface_mtu", "9000"),
        ] {
            assert_eq!(found.get(what).and_then(Value::as_str), Some(text), "{what}");
        }
        assert!(!found.contains_key("kind"), "{found:?}");
        assert!(!under(class.path(), "mlx5_0").expect("its first port").contains_key("speed"));
        for none in ["soft", "auto", "", "..", "../infiniband/mlx5_0", "mlx5_0:x", "mlx5_0/.."] {
            assert_eq!(under(class.path(), none), None, "{none}");
        }
    }
}
