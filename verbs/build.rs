//! With the feature `dpdk`: finds DPDK, builds the shim over its inline functions, and makes bindings of its headers.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "dpdk")]
    dpdk::build();
}

#[cfg(feature = "dpdk")]
mod dpdk {
    use std::path::PathBuf;

    const SHIM: &str = "src/soft/port_dpdk/shim.c";
    const HEADER: &str = "src/soft/port_dpdk/shim.h";
    const MISSING: &str =
        "the feature `dpdk` needs DPDK 22.11 or later with its headers: apt-get install libdpdk-dev libclang-dev";
    const FUNCTIONS: &str = "ob_.*|rte_eal_init|rte_eal_hotplug_(add|remove)|rte_eth_dev_(start|stop|close)|rte_eth_dev_get_port_by_name|\
        rte_mempool_(free|avail_count|in_use_count)|rte_pktmbuf_pool_create_by_ops";

    pub(super) fn build() {
        for file in [SHIM, HEADER] {
            println!("cargo::rerun-if-changed={file}");
        }
        let found = pkg_config::Config::new().atleast_version("22.11").probe("libdpdk");
        let library = found.unwrap_or_else(|error| panic!("{MISSING}\n{error}"));
        // What pkg-config says beside include paths: the processor that the headers are for, and DPDK's configuration.
        let flags = ["-include", "rte_config.h", "-march=corei7"];
        let is_x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
        let flags = if is_x86 { &flags[..] } else { &flags[..2] };

        let mut shim = cc::Build::new();
        shim.file(SHIM).includes(&library.include_paths).warnings(false).opt_level(3);
        flags.iter().for_each(|flag| {
            shim.flag(flag);
        });
        shim.compile("overbank_dpdk_shim");

        let includes = library.include_paths.iter().map(|path| format!("-I{}", path.display()));
        let bindings = bindgen::builder()
            .header(HEADER)
            .clang_args(includes)
            .clang_args(flags)
            .allowlist_function(FUNCTIONS)
            .opaque_type("rte_mbuf|rte_mempool")
            .generate_comments(false)
            .rust_target(bindgen::RustTarget::stable(90, 0).expect("a version of Rust"))
            .rust_edition(bindgen::RustEdition::Edition2024)
            .generate()
            .unwrap_or_else(|error| panic!("no bindings of DPDK's headers: {error}"));
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("dpdk.rs");
        bindings.write_to_file(&out).unwrap_or_else(|error| panic!("{}: {error}", out.display()));
    }
}
