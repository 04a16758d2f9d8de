//! What keeps DPDK from a port, found before it is tried, and the command that mends it.

use std::fs;
use std::path::Path;

/// Drivers that leave a card to DPDK.
const GENERIC: [&str; 3] = ["vfio-pci", "igb_uio", "uio_pci_generic"];
/// Drivers of the kernel's beside which DPDK uses the card.
const SHARED: [&str; 3] = ["mlx5_core", "mlx4_core", "mana"];
const HUGEPAGES: &str = "kernel/mm/hugepages";

/// Whether so many MiB of hugepages are free. `sys`: where the system's /sys is.
pub(crate) fn hugepages(sys: &Path, mib: usize) -> Result<(), String> {
    let number = |size: &Path| fs::read_to_string(size.join("free_hugepages")).ok()?.trim().parse::<usize>().ok();
    let kib =
        |size: &Path| size.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<usize>().ok();
    let sizes = fs::read_dir(sys.join(HUGEPAGES)).into_iter().flatten().flatten().map(|size| size.path());
    let free: usize = sizes.filter_map(|size| Some(number(&size)? * kib(&size)?)).sum::<usize>() >> 10;
    if free >= mib {
        return Ok(());
    }
    Err(format!(
        "{mib} MiB of hugepages are needed and {free} MiB are free; run `sysctl -w vm.nr_hugepages={}`",
        mib.div_ceil(2) + 32
    ))
}

/// Whether DPDK can have the card at this PCI address, as far as the system's files say.
pub(crate) fn card(sys: &Path, dev: &Path, address: &str) -> Result<(), String> {
    let device = sys.join("bus/pci/devices").join(address);
    if !device.exists() {
        return Err(format!("there is no PCI device {address}; `dpdk-devbind.py --status-dev net` lists them"));
    }
    let name = |link: &str| Some(fs::read_link(device.join(link)).ok()?.file_name()?.to_str()?.to_owned());
    let bind = format!("modprobe vfio-pci && dpdk-devbind.py --bind=vfio-pci {address}");
    let Some(driver) = name("driver") else {
        return Err(format!("{address} is bound to no driver; run `{bind}`"));
    };
    if SHARED.contains(&driver.as_str()) {
        return Ok(());
    }
    if !GENERIC.contains(&driver.as_str()) {
        return Err(format!(
            "{address} belongs to the kernel's driver {driver}; where nothing else uses that interface, run `{bind}`"
        ));
    }
    if driver != "vfio-pci" {
        return Ok(());
    }
    let Some(group) = name("iommu_group") else {
        return Err(format!(
            "{address} has no IOMMU group; boot with intel_iommu=on iommu=pt (amd_iommu is on by itself), or run \
             `echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode` where no IOMMU is"
        ));
    };
    // Without an IOMMU the group has another name.
    let file = dev.join("vfio").join(&group);
    let file = if file.exists() { file } else { dev.join("vfio").join(format!("noiommu-{group}")) };
    match fs::OpenOptions::new().read(true).write(true).open(&file) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(format!(
            "{address}, or a card of its IOMMU group, is in use; `fuser {}` names the process",
            file.display()
        )),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let file = file.display();
            Err(format!("no permission to use {file}; run `chown $USER {file}`, and raise `ulimit -l`"))
        }
        Err(error) => Err(format!("{}: {error}; run `modprobe vfio-pci`", file.display())),
    }
}

/// PCI addresses of this machine's network cards.
pub(crate) fn cards(sys: &Path) -> Vec<String> {
    let devices = fs::read_dir(sys.join("bus/pci/devices")).into_iter().flatten().flatten();
    // Base class 02.
    let is_network = |path: &Path| fs::read_to_string(path.join("class")).is_ok_and(|class| class.starts_with("0x02"));
    let mut cards: Vec<String> = devices
        .filter(|device| is_network(&device.path()))
        .filter_map(|device| device.file_name().into_string().ok())
        .collect();
    cards.sort();
    cards
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const CARD: &str = "0000:01:00.0";

    #[test]
    fn what_is_wrong_with_a_card_is_named_with_what_mends_it() {
        let root = tempfile::tempdir().unwrap();
        let (sys, dev) = (root.path().join("sys"), root.path().join("dev"));
        let says = |what: &str| {
            let said = card(&sys, &dev, CARD).unwrap_err();
            assert!(said.contains(what), "{said}");
        };
        says("no PCI device");
        let device = sys.join("bus/pci/devices").join(CARD);
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(sys.join("bus/pci/devices/0000:00:00.0")).unwrap();
        fs::write(device.join("class"), "0x020000\n").unwrap();
        assert_eq!(cards(&sys), [CARD]);
        says("bound to no driver; run `modprobe vfio-pci");
        let bind = |driver: &str| {
            let _ = fs::remove_file(device.join("driver"));
            symlink(format!("../../drivers/{driver}"), device.join("driver")).unwrap();
        };
        bind("ixgbe");
        says("kernel's driver ixgbe");
        bind("mlx5_core");
        card(&sys, &dev, CARD).unwrap();
        bind("vfio-pci");
        says("IOMMU");
        symlink("../../iommu_groups/17", device.join("iommu_group")).unwrap();
        says("modprobe vfio-pci");
        fs::create_dir_all(dev.join("vfio")).unwrap();
        fs::write(dev.join("vfio/17"), "").unwrap();
        card(&sys, &dev, CARD).unwrap();
        fs::rename(dev.join("vfio/17"), dev.join("vfio/noiommu-17")).unwrap();
        card(&sys, &dev, CARD).unwrap();
    }

    #[test]
    fn hugepages_of_all_sizes_count() {
        let root = tempfile::tempdir().unwrap();
        let size = |kib: usize, free: usize| {
            let path = root.path().join(HUGEPAGES).join(format!("hugepages-{kib}kB"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("free_hugepages"), format!("{free}\n")).unwrap();
        };
        assert!(hugepages(root.path(), 1).unwrap_err().contains("sysctl -w vm.nr_hugepages=33"));
        size(2048, 100);
        hugepages(root.path(), 200).unwrap();
        assert!(hugepages(root.path(), 201).unwrap_err().contains("200 MiB are free"));
        size(1_048_576, 1);
        hugepages(root.path(), 1224).unwrap();
    }
}
