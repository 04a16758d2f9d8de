//! Unchanged programs: they answer as they do without the pool, and use it.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{Bench, bounded, installed, plainly};

const MIB: usize = 1 << 20;

/// The same answer both ways, with so many bytes of the pool.
#[track_caller]
fn same(bench: &Bench, program: &Path, args: &[&str], at_least: usize) {
    let plain = plainly(program, args).expect(0);
    let pooled = bench.run(program, args).expect(0);
    assert!(!plain.stdout.is_empty());
    assert_eq!((pooled.stdout, pooled.stderr), (plain.stdout, plain.stderr));
    bench.used(at_least);
}

#[test]
fn sort() {
    let bench = Bench::new(512);
    let (file, mut state, mut lines) = (bench.path("numbers"), 1_u64, String::new());
    for _ in 0..400_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        writeln!(lines, "{}", state >> 40).expect("text");
    }
    std::fs::write(&file, lines).expect("written");
    let file = file.display().to_string();
    for more in ["--parallel=1", "--parallel=4"] {
        std::fs::remove_file(bench.path("statistics")).unwrap_or_default();
        same(&bench, Path::new("/usr/bin/sort"), &["-n", "-S", "64M", more, &file], 30 * MIB);
    }
}

#[test]
fn sqlite() {
    let Some(sqlite) = installed("sqlite3") else {
        return println!("SKIPPED programs::sqlite: no sqlite3 here");
    };
    let sql = "create table t(n integer, a blob); \
        with recursive c(n) as (select 1 union all select n + 1 from c where n < 30) \
        insert into t select n, zeroblob(1000000 + n) || hex(n * 7919) from c; \
        update t set a = replace(hex(a), '00', char(65 + n % 26)) where n % 3 = 0; \
        select n, length(a), substr(a, -9), substr(a, 5, 3) from t order by length(a) desc, n; \
        select sum(length(a)), count(distinct a) from t;";
    same(&Bench::new(512), &sqlite, &[":memory:", sql], 60 * MIB);
}

#[test]
fn python_with_numpy() {
    let python = Path::new("/usr/bin/python3");
    if !python.is_file() || plainly(python, &["-c", "import numpy"]).status != 0 {
        return println!("SKIPPED programs::python_with_numpy: no /usr/bin/python3 with numpy here");
    }
    let text = "import numpy, hashlib, subprocess, threading\n\
        a = numpy.arange(2_000_000, dtype=numpy.float64)\n\
        b = numpy.sort((a * 7919) % 1000003)[::-1].copy()\n\
        c = numpy.fft.fft(b[:1 << 19])\n\
        m = a[:490000].reshape(700, 700)\n\
        print(b.sum(), hashlib.sha256(b.tobytes()).hexdigest(), abs(c).sum(), (m @ m.T).trace())\n\
        words = {str(n): [n] * 10 for n in range(100000)}\n\
        print(sum(len(value) for value in words.values()), sorted(words)[:3])\n\
        grown = bytearray()\n\
        for n in range(3000): grown += bytes([n % 251]) * 5000\n\
        print(hashlib.sha256(grown).hexdigest())\n\
        sums = []\n\
        threads = [threading.Thread(target=lambda n=n: sums.append(int(numpy.ones(500000 + n).sum()))) for n in range(4)]\n\
        [thread.start() for thread in threads]; [thread.join() for thread in threads]\n\
        print(sorted(sums), subprocess.check_output(['echo', 'from a child']))\n";
    same(&Bench::new(1024), python, &["-c", text], 100 * MIB);
}

#[test]
fn cxx_containers() {
    if installed("c++").is_none() {
        return println!("SKIPPED programs::cxx_containers: no C++ compiler here");
    }
    let source = r#"
        #include <algorithm>
        #include <cstdio>
        #include <deque>
        #include <memory>
        #include <numeric>
        #include <string>
        #include <thread>
        #include <vector>
        int main() {
            std::vector<unsigned long> v;
            for (unsigned long i = 0; i < 3000000; i++) v.push_back(i * 2654435761ul % 1000003);
            std::sort(v.begin(), v.end());
            std::string s;
            for (int i = 0; i < 200000; i++) s += std::to_string(i);
            std::deque<std::vector<char>> d;
            for (int i = 0; i < 60; i++) { d.emplace_back(300000 + i, (char)i); if (i % 3) d.pop_front(); }
            std::unique_ptr<double[]> z(new double[1000000]());
            std::vector<std::thread> threads;
            std::vector<unsigned long> sums(4);
            for (int t = 0; t < 4; t++) threads.emplace_back([&, t] {
                std::vector<unsigned> own(500000 + t);
                std::iota(own.begin(), own.end(), t);
                sums[t] = std::accumulate(own.begin(), own.end(), 0ul);
            });
            for (auto &t : threads) t.join();
            unsigned long sum = std::accumulate(v.begin(), v.end(), 0ul), size = 0;
            for (auto &c : d) size += c.size() + c[7];
            printf("%lu %zu %lu %f %lu\n", sum, s.size(), size, z[999999], sums[0] + sums[3]);
            try { std::vector<char> huge(1ul << 62); } catch (const std::exception &e) { printf("%s\n", e.what()); }
        }"#;
    let bench = Bench::new(512);
    let program = bench.compile("c++", "containers", source, &["-O1", "-pthread"]);
    same(&bench, &program, &[], 60 * MIB);
}

/// Its allocator is in a library of its own: large blocks are the pool's, and what that allocator maps for small ones too.
#[test]
fn redis_with_jemalloc() {
    let Some(redis) = installed("redis-check-rdb") else {
        return println!("SKIPPED programs::redis_with_jemalloc: no package redis-tools here");
    };
    let bench = Bench::new(512);
    let server = bench.path("redis-server");
    std::os::unix::fs::symlink(redis, &server).expect("a link");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let mut command = bounded(&server, &["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1"]);
    bench.with_pool(&mut command);
    let mut child = command.current_dir(bench.directory.path()).stdout(Stdio::null()).spawn().expect("it starts");
    let until = Instant::now() + Duration::from_secs(20);
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "no answer: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let value = |key: usize| format!("{key}:").repeat(50 + key % 40);
    let mut ask = |words: &[&str]| {
        let mut request = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| request += &format!("${}\r\n{word}\r\n", word.len()));
        stream.write_all(request.as_bytes()).expect("sent");
        let (mut answer, mut byte) = (Vec::new(), [0]);
        while !answer.ends_with(b"\r\n") {
            stream.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }
        let length = std::str::from_utf8(&answer).expect("text").trim_start_matches('$').trim().parse::<usize>();
        if let (b'$', Ok(length)) = (answer[0], length) {
            answer = vec![0; length + 2];
            stream.read_exact(&mut answer).expect("the rest");
        }
        String::from_utf8(answer).expect("text").trim_end().to_owned()
    };
    for key in 0..30_000 {
        assert_eq!(ask(&["SET", &format!("key {key}"), &value(key)]), "+OK");
    }
    let large = "large!".repeat(500_000);
    assert_eq!(ask(&["SET", "large", &large]), "+OK");
    for key in (0..30_000).step_by(997) {
        assert_eq!(ask(&["GET", &format!("key {key}")]), value(key));
    }
    assert!(ask(&["GET", "large"]) == large);
    assert_eq!(ask(&["FLUSHALL"]), "+OK");
    assert_eq!(ask(&["DBSIZE"]), ":0");
    let _ = stream_end(&mut child, &mut ask);
    let used = bench.used(8 * MIB);
    assert!(used["allocations"].as_u64() > Some(0) && used["mappings"].as_u64() > Some(0), "{used}");
}

fn stream_end(child: &mut std::process::Child, ask: &mut dyn FnMut(&[&str]) -> String) -> std::io::Result<()> {
    // It ends without an answer.
    let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&["SHUTDOWN", "NOSAVE"])));
    drop(asked);
    child.wait().map(|_| ())
}

/// A program that brings its own `malloc`: what that maps is the pool's, though its lock is held meanwhile.
#[test]
fn an_allocator_of_the_programs_own() {
    let source = r#"
        #define _GNU_SOURCE
        #include <errno.h>
        #include <pthread.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/mman.h>
        static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
        static char *at, *end;
        static unsigned long blocks, mapped;
        void *malloc(size_t size) {
            size = (size + 31) & ~15ul;
            // Not recursive: who asks again while it is held waits for ever.
            pthread_mutex_lock(&lock);
            if (size > (size_t)(end - at)) {
                size_t length = size > 4 << 20 ? size + 4096 : 4 << 20;
                at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                if (at == MAP_FAILED) { at = end = NULL; pthread_mutex_unlock(&lock); errno = ENOMEM; return NULL; }
                end = at + length;
                mapped++;
            }
            char *block = at;
            at += size;
            blocks++;
            *(size_t *)block = size - 16;
            pthread_mutex_unlock(&lock);
            return block + 16;
        }
        void free(void *block) { if (block) memset(block, 0xAA, ((size_t *)block)[-2]); }
        void *calloc(size_t count, size_t size) { void *block = malloc(count * size); return block ? memset(block, 0, count * size) : block; }
        void *realloc(void *block, size_t size) {
            void *new = malloc(size);
            if (block && new) { size_t old = ((size_t *)block)[-2]; memcpy(new, block, old < size ? old : size); free(block); }
            return new;
        }
        static void *work(void *n) { char *s = NULL; for (int i = 1; i < 300; i++) { s = realloc(s, i * 1000); s[i] = 1; } return s; }
        int main(void) {
            pthread_t t[3];
            for (int i = 0; i < 3; i++) pthread_create(&t[i], NULL, work, NULL);
            for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
            char *line = NULL;
            size_t n = 0;
            FILE *f = fopen("/proc/self/comm", "r");
            if (getline(&line, &n, f) > 0) printf("%s", line);
            fclose(f);
            printf("%d %d\n", blocks > 900, mapped > 20);
        }"#;
    let bench = Bench::new(1024);
    let program = bench.compile("cc", "own", source, &["-O1", "-pthread", "-w", "-fno-builtin"]);
    same(&bench, &program, &[], 100 * MIB);
}
