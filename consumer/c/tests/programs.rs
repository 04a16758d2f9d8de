//! Programs in C and Fortran against real daemons: compiled as their authors would, by what scripts/install-c installs.
//!
//! Needs the library and the other programs: run `cargo build --workspace` first. OVERBANK_TEST_DEVICE names the device, the soft one by
//! default.

#[allow(dead_code, reason = "of the tests of the consumer, which use all of it")]
#[path = "../../tests/e2e/process.rs"]
mod process;
#[allow(dead_code, reason = "of the tests of the consumer, which use all of it")]
#[path = "../../tests/e2e/stack.rs"]
mod stack;

use std::path::{Path, PathBuf};
use std::process::Command;

use stack::{Stack, User, device, run};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What scripts/install-c makes of this build, and a place to compile in.
struct Installed(tempfile::TempDir);

impl Installed {
    fn new() -> Self {
        let installed = Self(tempfile::tempdir().expect("a directory"));
        let library = process::program("overbank").with_file_name("liboverbank.so");
        let mut command = Command::new(here().join("../../scripts/install-c"));
        run(command.arg("--prefix").arg(installed.0.path()).arg("--library").arg(library)).expect(0);
        installed
    }

    fn lib(&self) -> PathBuf {
        self.0.path().join("lib")
    }

    fn pkg_config(&self, args: &[&str]) -> Vec<String> {
        let path = self.lib().join("pkgconfig");
        let outcome = run(Command::new("pkg-config").args(args).arg("overbank").env("PKG_CONFIG_PATH", path)).expect(0);
        String::from_utf8(outcome.stdout).expect("text").split_whitespace().map(str::to_owned).collect()
    }

    /// A program of that source, or None where there is no such compiler.
    fn compile(&self, compiler: &str, flags: &[&str], sources: &[PathBuf]) -> Option<PathBuf> {
        if Command::new(compiler).arg("--version").output().is_err() {
            println!("SKIPPED {compiler}: there is none here (Debian: apt-get install gcc gfortran)");
            return None;
        }
        let program = self.0.path().join(sources.last()?.file_name()?).with_extension("program");
        let mut command = Command::new(compiler);
        command.args(flags).arg("-o").arg(&program).args(sources);
        command.args(self.pkg_config(&["--cflags", "--libs"])).current_dir(self.0.path());
        let outcome = run(&mut command).expect(0);
        assert_eq!(outcome.stderr, "", "a warning");
        Some(program)
    }

    /// Runs it as that borrower.
    fn start(&self, user: &User, program: &Path, args: &[&str]) -> process::Outcome {
        let command = user.command(&[]);
        let mut own = Command::new(program);
        own.args(args);
        command.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(own.env(name, value)),
            None => drop(own.env_remove(name)),
        });
        own.env("LD_LIBRARY_PATH", self.lib());
        run(&mut own)
    }
}

const WARNINGS: [&str; 6] = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn text(outcome: &process::Outcome) -> String {
    String::from_utf8(outcome.stdout.clone()).expect("text")
}

#[test]
fn spill_in_c_puts_memory_elsewhere_and_gets_it_back() {
    let installed = Installed::new();
    let Some(program) = installed.compile("cc", &WARNINGS, &[here().join("examples/spill.c")]) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let outcome = installed.start(&ann, &program, &["3000001", &device()]).expect(0);
    assert!(text(&outcome).contains("3000001 bytes went to lease") && text(&outcome).contains("wiped"), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
    // Nothing of it is left.
    let leases = ann.run(&["lease", "list", "--json"]).expect(0).json();
    let left = leases["leases"].as_array().expect("a list").iter().filter(|lease| lease["state"] != "ended");
    assert_eq!(left.count(), 0, "{leases}");
    // The library's words reach the program's user, and its status the shell.
    let outcome = installed.start(&ann, &program, &["999999999999"]);
    assert_eq!(outcome.status, 6, "no room: {outcome:?}");
    assert!(outcome.stderr.starts_with("spill: leasing: "), "{}", outcome.stderr);
    let eve = stack.stranger("eve");
    let outcome = installed.start(&eve, &program, &[]);
    assert_eq!(outcome.status, 4, "not trusted: {outcome:?}");
}

#[test]
fn spill_in_fortran_puts_an_array_elsewhere_and_gets_it_back() {
    let installed = Installed::new();
    let sources = [here().join("overbank.f90"), here().join("examples/spill.f90")];
    let flags = ["-std=f2018", "-Wall", "-Wextra", "-Werror", "-Wno-compare-reals"];
    let Some(program) = installed.compile("gfortran", &flags, &sources) else { return };
    assert_eq!(
        installed.pkg_config(&["--variable=fortran"]),
        [installed.0.path().join("include/overbank.f90").display().to_string()]
    );
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let outcome = installed.start(&ann, &program, &["250001", &device()]).expect(0);
    assert!(text(&outcome).contains("250001 numbers went to lease") && text(&outcome).contains("wiped"), "{outcome:?}");
    let eve = stack.stranger("eve");
    let outcome = installed.start(&eve, &program, &[]);
    assert_eq!(outcome.status, 1, "{outcome:?}");
    assert!(outcome.stderr.starts_with("spill: leasing: ") && outcome.stderr.contains("trust"), "{}", outcome.stderr);
}

#[test]
fn what_a_caller_does_wrong_is_an_error_and_touches_no_memory() {
    let installed = Installed::new();
    let flags = [&WARNINGS[..], &["-g", "-pthread"]].concat();
    let Some(program) = installed.compile("cc", &flags, &[here().join("tests/misuse.c")]) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let outcome = installed.start(&ann, &program, &[&device()]).expect(0);
    assert_eq!(text(&outcome), "ok\n");
}

#[test]
fn the_header_is_c_and_c_plus_plus_and_the_library_exports_what_it_declares_alone() {
    let header = std::fs::read_to_string(here().join("overbank.h")).expect("it");
    let mut declared: Vec<&str> = header
        .split("overbank_")
        .filter_map(|rest| rest.split_once('('))
        .map(|(name, _)| name)
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .collect();
    declared.sort_unstable();
    declared.dedup();
    assert!(declared.len() > 20, "{declared:?}");
    let library = process::program("overbank").with_file_name("liboverbank.so");
    let symbols = run(Command::new("nm").args(["--dynamic", "--defined-only", "--format=just-symbols"]).arg(library));
    let symbols = text(&symbols.expect(0));
    let mut exported: Vec<&str> = symbols.lines().map(|name| name.strip_prefix("overbank_").unwrap_or(name)).collect();
    exported.sort_unstable();
    assert_eq!(exported, declared, "exported and declared differ");
    for (compiler, flags) in [("cc", ["-std=c99", "-x", "c"]), ("c++", ["-std=c++17", "-x", "c++"])] {
        if Command::new(compiler).arg("--version").output().is_err() {
            continue;
        }
        let mut command = Command::new(compiler);
        command.args(flags).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"]);
        run(command.arg(here().join("overbank.h"))).expect(0);
    }
}

#[test]
fn the_example_of_the_manual_compiles() {
    let manual = std::fs::read_to_string(here().join("../../docs/c-api.md")).expect("it");
    let example = manual.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let installed = Installed::new();
    let source = installed.0.path().join("manual.c");
    let whole = format!(
        "#include <overbank.h>\nint example(overbank_lease *lease);\nint example(overbank_lease *lease) {{\n{example}return 0;\n}}\nint main(void) {{ return 0; }}\n"
    );
    std::fs::write(&source, whole).expect("written");
    assert!(installed.compile("cc", &WARNINGS, &[source]).is_some(), "a C compiler");
}

#[test]
fn the_module_for_fortran_says_what_the_header_says() {
    let header = std::fs::read_to_string(here().join("overbank.h")).expect("it");
    let module = std::fs::read_to_string(here().join("overbank.f90")).expect("it");
    let mut constants = 0;
    for line in header.lines().map(str::trim) {
        let (name, value) = match line.strip_prefix("#define ") {
            Some(rest) => rest.split_once(' ').unwrap_or_default(),
            None => line.trim_end_matches(',').split_once(" = ").unwrap_or_default(),
        };
        if name.starts_with("OVERBANK_") && !value.is_empty() {
            assert!(module.contains(&format!(":: {name} = {value}\n")), "{name} = {value} is not in overbank.f90");
            constants += 1;
        }
    }
    assert!(constants > 20, "{constants}");
    let mut functions = 0;
    for line in module.lines().map(str::trim).filter(|line| line.ends_with(" bind(c)") && line.contains("function")) {
        let declared = line.split_once("function ").expect("it").1.trim_end_matches(" bind(c)");
        let (name, arguments) = declared.trim_end_matches(')').split_once('(').expect("arguments");
        let at = header.find(&format!("{name}(")).unwrap_or_else(|| panic!("{name} is not in overbank.h"));
        let theirs = header[at + name.len() + 1..].split(')').next().expect("an end");
        let theirs: Vec<&str> = theirs
            .split(',')
            .map(|argument| argument.rsplit([' ', '*']).next().expect("a name").trim())
            .filter(|name| !["void", ""].contains(name))
            .collect();
        let ours: Vec<&str> = arguments.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        assert_eq!(ours, theirs, "{name}");
        functions += 1;
    }
    assert_eq!(functions, header.matches("\nenum overbank_status overbank_").count() + 3);
}

#[test]
fn valgrind_sees_no_byte_touched_that_should_not_be() {
    let installed = Installed::new();
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED valgrind: there is none here (Debian: apt-get install valgrind)");
        return;
    }
    let flags = [&WARNINGS[..], &["-g"]].concat();
    let Some(program) = installed.compile("cc", &flags, &[here().join("examples/spill.c")]) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let program = program.display().to_string();
    let args = ["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite", &program];
    let outcome = installed.start(&ann, Path::new("valgrind"), &[&args[..], &["100001", &device()]].concat());
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    assert!(text(&outcome).contains("100001 bytes went to lease"), "{outcome:?}");
}
