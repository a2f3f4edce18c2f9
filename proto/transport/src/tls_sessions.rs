//! A TLS session store that holds enough tickets for a burst of streams. Resuming a session costs both ends half of a full handshake.
//!
//! rustls' own store keeps eight TLS 1.3 tickets, each good for one connection: of 64 streams at once, 56 would need a full handshake.

use std::collections::VecDeque;
use std::sync::Mutex;

use rustls::NamedGroup;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use crate::lock::lock;

/// Tickets kept per server, half a kilobyte each.
const TICKETS: usize = 64;
/// Servers remembered: the relay, and the hosts that its legs may have.
const SERVERS: usize = 8;

/// In memory only. TLS 1.3 tickets are kept here, everything else in rustls' own store.
#[derive(Debug)]
pub(crate) struct TlsSessionStore {
    rest: ClientSessionMemoryCache,
    tickets: Mutex<VecDeque<Tickets>>,
}

#[derive(Debug)]
struct Tickets {
    server: ServerName<'static>,
    /// Oldest first.
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Default for TlsSessionStore {
    fn default() -> Self {
        Self { rest: ClientSessionMemoryCache::new(8 * SERVERS), tickets: Mutex::default() }
    }
}

impl ClientSessionStore for TlsSessionStore {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.rest.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.rest.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.rest.set_tls12_session(server, value);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.rest.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.rest.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut all = lock(&self.tickets);
        if !all.iter().any(|tickets| tickets.server == server) {
            if all.len() == SERVERS {
                all.pop_front();
            }
            all.push_back(Tickets { server: server.clone(), tickets: VecDeque::new() });
        }
        if let Some(Tickets { tickets, .. }) = all.iter_mut().find(|tickets| tickets.server == server) {
            if tickets.len() == TICKETS {
                tickets.pop_front();
            }
            tickets.push_back(value);
        }
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut all = lock(&self.tickets);
        all.iter_mut().find(|tickets| tickets.server == *server)?.tickets.pop_back()
    }
}
