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

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
        run(&mut self.command(user, program, args))
    }

    fn command(&self, user: &User, program: &Path, args: &[&str]) -> Command {
        let command = user.command(&[]);
        let mut own = Command::new(program);
        own.args(args);
        command.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(own.env(name, value)),
            None => drop(own.env_remove(name)),
        });
        own.env("LD_LIBRARY_PATH", self.lib());
        own
    }
}

const WARNINGS: [&str; 6] = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Wpedantic", "-Werror"];
const FORTRAN: [&str; 5] = ["-std=f2018", "-Wall", "-Wextra", "-Werror", "-Wno-compare-reals"];
/// For what the kernel alone knows of pages.
const OF_REGIONS: [&str; 8] =
    ["-std=c11", "-D_DEFAULT_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-pthread"];

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
    let Some(program) = installed.compile("gfortran", &FORTRAN, &sources) else { return };
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

/// The number before those words.
#[track_caller]
fn number(said: &str, words: &str) -> u64 {
    let number = said.split(words).next().and_then(|before| before.rsplit(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no number before '{words}' in: {said}"))
}

#[test]
fn outgrow_in_c_uses_more_memory_than_it_may_have_here() {
    let installed = Installed::new();
    let Some(program) = installed.compile("cc", &WARNINGS, &[here().join("examples/outgrow.c")]) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let outcome = installed.start(&ann, &program, &["300001", "300000", &device()]).expect(0);
    let said = text(&outcome);
    // 2.4 MB in pages of 4 KiB, an eighth of them here.
    assert!(said.starts_with("300001 numbers have the sum 45000450001; ") && said.contains("; it is wiped"), "{said}");
    assert!(number(&said, " pages went") > 500 && number(&said, " came") > 500, "{said}");
    assert!(number(&said, " bytes were here") <= 300_000, "{said}");
    assert_eq!(outcome.stderr, "");
    // A lease that cannot be memory is given back.
    let outcome = installed.start(&ann, &program, &["300001", "4096", &device()]).expect(2);
    assert!(outcome.stderr.contains("1 pages of local memory are too few"), "{}", outcome.stderr);
    let leases = ann.run(&["lease", "list", "--json"]).expect(0).json();
    let left = leases["leases"].as_array().expect("a list").iter().filter(|lease| lease["state"] != "ended");
    assert_eq!(left.count(), 0, "{leases}");
}

#[test]
fn outgrow_in_fortran_sums_an_array_that_is_mostly_elsewhere() {
    let installed = Installed::new();
    let sources = [here().join("overbank.f90"), here().join("examples/outgrow.f90")];
    let Some(program) = installed.compile("gfortran", &FORTRAN, &sources) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let outcome = installed.start(&ann, &program, &["250001", "300000", &device()]).expect(0);
    let said = text(&outcome);
    assert!(said.contains("250001 numbers have the right sum") && said.contains("wiped"), "{outcome:?}");
    assert!(number(&said, " pages went") > 400 && number(&said, " came") > 400, "{said}");
}

#[test]
fn a_region_is_memory_of_this_process_alone_until_it_is_released() {
    let installed = Installed::new();
    let Some(program) = installed.compile("cc", &OF_REGIONS, &[here().join("tests/region.c")]) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let outcome = installed.start(&ann, &program, &[&device()]).expect(0);
    assert_eq!((text(&outcome).as_str(), outcome.stderr.as_str()), ("ok\n", ""));
}

#[test]
fn a_region_that_is_lost_is_a_status_for_who_asks_and_sigbus_for_who_touches_it() {
    let installed = Installed::new();
    let Some(program) = installed.compile("cc", &OF_REGIONS, &[here().join("tests/region.c")]) else { return };
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let mut child = installed
        .command(&ann, &program, &[&device(), "lost"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let lease = lines.next().expect("it says which lease").expect("text");
    stack.operator.run(&["lease", "stop", &lease]).expect(0);
    child.stdin.take().expect("piped").write_all(b"go on\n").expect("told");
    let rest: Vec<String> = lines.map(|line| line.expect("text")).collect();
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(rest, ["lost"], "{said}");
    assert_eq!(output.status.signal(), Some(7), "{:?} {said}", output.status);
    assert!(said.contains("of a paged region of 1048576, is lost: "), "{said}");
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
fn the_examples_of_the_manual_compile() {
    let manual = std::fs::read_to_string(here().join("../../docs/c-api.md")).expect("it");
    let examples: Vec<&str> = manual.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 2);
    let installed = Installed::new();
    for (at, example) in examples.iter().enumerate() {
        let source = installed.0.path().join(format!("manual-{at}.c"));
        let whole = format!(
            "#include <overbank.h>\nint example(overbank_lease *lease);\nint example(overbank_lease *lease) {{\n{example}return 0;\n}}\nint main(void) {{ return 0; }}\n"
        );
        std::fs::write(&source, whole).expect("written");
        assert!(installed.compile("cc", &WARNINGS, &[source]).is_some(), "a C compiler");
    }
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
    let fields = |text: &str, of: fn(&str) -> Option<(&str, &str)>| -> Vec<String> {
        text.lines().filter_map(|line| of(line.trim())).map(|(kind, name)| format!("{kind} {name}")).collect()
    };
    let mut structs = 0;
    for theirs in header.split("typedef struct overbank_").skip(1).filter_map(|rest| rest.split_once(" {\n")) {
        let (name, body) = (theirs.0, theirs.1.split('}').next().expect("an end"));
        if name.contains(';') {
            continue;
        }
        let theirs = fields(body, |line| {
            let (kind, name) = line.strip_suffix(';')?.rsplit_once(' ')?;
            Some(match (name.strip_prefix('*'), kind) {
                (Some(name), _) => ("type(c_ptr)", name),
                (None, "size_t") => ("integer(c_size_t)", name),
                (None, "uint64_t") => ("integer(c_int64_t)", name),
                (None, _) => ("integer(c_int32_t)", name),
            })
        });
        let ours = module.split(&format!("type, bind(c) :: overbank_{name}\n")).nth(1);
        let ours = ours.unwrap_or_else(|| panic!("overbank_{name} is not in overbank.f90"));
        let ours = fields(ours.split("end type").next().expect("an end"), |line| {
            line.split_once(" = ").and_then(|(declared, _)| declared.split_once(" :: "))
        });
        assert_eq!(ours, theirs, "{name}");
        structs += 1;
    }
    assert_eq!(structs, header.matches("  size_t size;\n").count());
}

#[test]
fn valgrind_sees_no_byte_touched_that_should_not_be() {
    let installed = Installed::new();
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("SKIPPED valgrind: there is none here (Debian: apt-get install valgrind)");
        return;
    }
    let flags = [&WARNINGS[..], &["-g"]].concat();
    let stack = Stack::start();
    let ann = stack.consumer("ann", "blue");
    let options = ["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite"];
    // Without it a program has lost its registers when the handler of SIGBUS returns.
    let regions = ["--vex-iropt-register-updates=allregs-at-mem-access"];
    for (name, more, args, said) in [
        ("spill", &[][..], &["100001"][..], "100001 bytes went to lease"),
        ("outgrow", &regions[..], &["100001", "200000"][..], "100001 numbers have the sum 5000150001"),
    ] {
        let source = here().join(format!("examples/{name}.c"));
        let Some(program) = installed.compile("cc", &flags, &[source]) else { return };
        let (program, device) = (program.display().to_string(), device());
        let args = [&options[..], more, &[program.as_str()], args, &[device.as_str()]].concat();
        let outcome = installed.start(&ann, Path::new("valgrind"), &args);
        assert_eq!(outcome.status, 0, "{name}: {}", outcome.stderr);
        assert!(text(&outcome).contains(said), "{outcome:?}");
    }
}
