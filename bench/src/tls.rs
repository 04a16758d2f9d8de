//! TLS as a peer is asked over it: 1.3, AES-256-GCM, and a certificate made for this run, which alone is trusted.

use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::error::BenchError;
use crate::peer::Peer;

/// What makes certificates.
const MAKER: &str = "openssl";
/// For making one, and for a handshake.
const PATIENCE: Duration = Duration::from_secs(20);
/// For the address that every peer has; no authority, so that it may be a server's.
const WISHES: &str = "[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = overbank-bench
[extensions]
basicConstraints = critical, CA:FALSE
subjectAltName = IP:127.0.0.1
";

/// The one suite, as the protocol calls it.
pub(crate) const SUITE: &str = "TLS_AES_256_GCM_SHA384";

/// A server's certificate and key.
pub(crate) struct Certificate {
    /// PEM.
    pub(crate) certificate: PathBuf,
    /// PEM.
    pub(crate) key: PathBuf,
}

impl Certificate {
    /// Makes them in a directory that nobody else may look into; or says, inside, why there can be none here.
    pub(crate) fn make(dir: &Path) -> Result<Result<Self, String>, BenchError> {
        let (wishes, certificate, key) =
            (dir.join("certificate.cnf"), dir.join("certificate.pem"), dir.join("key.pem"));
        std::fs::write(&wishes, WISHES).map_err(BenchError::io(format!("write {}", wishes.display())))?;
        let mut command = Command::new(MAKER);
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        command.args(["-days", "2", "-config"]).arg(wishes).arg("-keyout").arg(&key).arg("-out").arg(&certificate);
        let mut maker = match Peer::start(command, Some(&dir.join("certificate.log"))) {
            Ok(maker) => maker,
            Err(BenchError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Err(format!("there is no {MAKER} to make a certificate with; install {MAKER}")));
            }
            Err(error) => return Err(error),
        };
        maker.rest(PATIENCE)?;
        Ok(Ok(Self { certificate, key }))
    }
}

/// Shakes hands over a new connection; only who has that certificate will do.
pub(crate) fn connect(
    mut stream: TcpStream,
    certificate: &Path,
) -> Result<StreamOwned<ClientConnection, TcpStream>, BenchError> {
    let failed = |what: &str| {
        let what = format!("failed at TLS: {what}");
        BenchError::Child { program: "the peer".to_owned(), what }
    };
    let trusted = CertificateDer::from_pem_file(certificate).map_err(|error| failed(&error.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add(trusted).map_err(|error| failed(&error.to_string()))?;
    let provider = CryptoProvider { cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384], ..default_provider() };
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(&error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into());
    let mut session = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(&error.to_string()))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(BenchError::io("set up a connection"))?;
    while session.is_handshaking() {
        session.complete_io(&mut stream).map_err(|error| failed(&error.to_string()))?;
    }
    Ok(StreamOwned::new(session, stream))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use rustls::pki_types::PrivateKeyDer;
    use rustls::{CipherSuite, ProtocolVersion, ServerConfig, ServerConnection};

    use super::*;

    /// A server that echoes one byte; where it listens.
    fn server(certificate: &Certificate) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let chain = vec![CertificateDer::from_pem_file(&certificate.certificate).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let config = config.with_single_cert(chain, key).expect("a pair");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("loopback");
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            let session = ServerConnection::new(Arc::new(config)).expect("a session");
            let mut stream = StreamOwned::new(session, stream);
            let mut byte = [0];
            if stream.read_exact(&mut byte).is_ok() {
                let _ = stream.write_all(&byte).and_then(|()| stream.flush());
            }
        });
        stream
    }

    #[test]
    fn only_the_certificate_that_was_made_for_it_will_do() {
        let [own, other] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let certificates = [&own, &other].map(|dir| Certificate::make(dir.path()).expect("no failure"));
        let [Ok(own), Ok(other)] = &certificates else {
            println!("SKIPPED certificate: there is no {MAKER}");
            return;
        };
        let mut stream = connect(server(own), &own.certificate).expect("its own");
        assert_eq!(stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let suite = stream.conn.negotiated_cipher_suite().expect("a suite").suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_256_GCM_SHA384);
        stream.write_all(&[7]).and_then(|()| stream.flush()).expect("sent");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("answered");
        assert_eq!(byte, [7]);
        assert!(connect(server(own), &other.certificate).is_err(), "another's");
    }
}
