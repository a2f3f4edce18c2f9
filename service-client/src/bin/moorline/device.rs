//! `moorline device …`: the devices of the registry, as text and as JSON.

use std::error::Error;

use moorline::{Client, Device, DeviceError, DeviceId, PublicKey, PublicKeyError};
use moorline_proto::pasted::Form;

use crate::cli::DeviceAction;
use crate::credentials::{Credentials, read};
use crate::exit::{Exit, Failure};
use crate::output::{Output, table};

/// Runs one action on the registry.
///
/// # Errors
/// The relay refused the request or cannot be reached, or the key is not valid.
pub(crate) async fn run(action: DeviceAction, credentials: &Credentials, output: Output) -> Result<(), Failure> {
    let client = credentials.client(&output)?;
    match action {
        DeviceAction::Add { id, key } => {
            let key = parse_key(&read(&key)?)?;
            let (algorithm, kid) = (key.algorithm(), key.thumbprint());
            let what = match add(&client, &id, key).await? {
                AddOutcome::Created => format!("added {id} with its {algorithm} key {kid}"),
                AddOutcome::AlreadyRegistered => format!("{id} is already registered with this {algorithm} key {kid}"),
            };
            output.note(&format!("{what}\nnext: start moorline-agent on it, then `moorline device list`"));
            Ok(())
        }
        DeviceAction::List { json } => {
            let devices = client.devices().await.map_err(|error| device_failure("cannot list the devices", &error))?;
            if json { output.json(&devices) } else { output.print(&list(&devices)) }.map_err(|error| write_failure(&error))
        }
        DeviceAction::Show { id, json } => {
            let device = client.device(&id).await.map_err(|error| device_failure(&format!("cannot show {id}"), &error))?;
            if json { output.json(&device) } else { output.print(&page(&device)) }.map_err(|error| write_failure(&error))
        }
        DeviceAction::Remove { id } => {
            client.remove_device(&id).await.map_err(|error| device_failure(&format!("cannot remove {id}"), &error))?;
            output.note(&format!("removed {id}"));
            Ok(())
        }
    }
}

enum AddOutcome {
    Created,
    AlreadyRegistered,
}

/// Adding a device again with the same key is not an error. `add` never replaces a key.
async fn add(client: &Client, id: &DeviceId, key: PublicKey) -> Result<AddOutcome, Failure> {
    let what = format!("cannot add {id}");
    match client.device(id).await {
        Ok(there) if there.keys.iter().any(|known| known.kid == key.thumbprint()) => return Ok(AddOutcome::AlreadyRegistered),
        Ok(_) => {
            let failure = Failure::new(Exit::Refused, what).because("a device with this id exists and has another key");
            return Err(failure.next(format!("to replace it: `moorline device remove {id}`, then add it again")));
        }
        Err(DeviceError::Refused(problem)) if problem.status == 404 => {}
        Err(error) => return Err(device_failure(&what, &error)),
    }
    client.put_device(id, vec![key]).await.map(|_| AddOutcome::Created).map_err(|error| device_failure(&what, &error))
}

fn parse_key(text: &str) -> Result<PublicKey, Failure> {
    let not_a_key = |error: &(dyn Error + 'static)| Failure::new(Exit::Usage, "this is not a device's public key").caused_by(error);
    Form::PublicKey.check(text).map_err(|error| not_a_key(&error).next(error.advice()))?;
    PublicKey::from_pem(text).map_err(|error| {
        let failure = not_a_key(&error);
        match error {
            PublicKeyError::Private => failure.next("`moorline-agent key --config FILE` prints the public key, on the device"),
            PublicKeyError::SmallOrder | PublicKeyError::NotCanonical => {
                failure.next("make a new key on the device with `moorline-agent init`: this one proves nothing")
            }
            PublicKeyError::NotPem | PublicKeyError::Algorithm | PublicKeyError::Jwk(_) => {
                failure.next("use what `moorline-agent init` or `moorline-agent key` printed on the device")
            }
        }
    })
}

fn list(devices: &[Device]) -> String {
    let rows: Vec<[String; 5]> = devices.iter().map(row).collect();
    table(["DEVICE", "STATE", "LAST SEEN", "SERVICES", "AGENT"], &rows)
}

fn row(device: &Device) -> [String; 5] {
    let last_seen = device.last_seen.map_or_else(|| "never".to_owned(), |seen| seen.to_string());
    match &device.online {
        None => [device.device.to_string(), "offline".to_owned(), last_seen, "-".to_owned(), "-".to_owned()],
        Some(online) => {
            let services: Vec<&str> = online.services.iter().map(|service| service.name.as_str()).collect();
            let services = if services.is_empty() { "-".to_owned() } else { services.join(",") };
            [device.device.to_string(), "online".to_owned(), "now".to_owned(), services, online.agent.to_string()]
        }
    }
}

fn page(device: &Device) -> String {
    let mut rows: Vec<[String; 2]> = Vec::new();
    let mut row = |name: &str, value: String| rows.push([name.to_owned(), value]);
    row("state", if device.online.is_some() { "online".to_owned() } else { "offline".to_owned() });
    row("added", device.created.to_string());
    if let Some(last_seen) = device.last_seen {
        row("last seen", last_seen.to_string());
    }
    if let Some(online) = &device.online {
        row("online since", online.since.to_string());
        row("node", online.node.to_string());
        row("session", online.session.clone());
        row("address", online.address.to_string());
        row("agent", online.agent.to_string());
        for (name, text) in [("host name", &online.hostname), ("system", &online.os)] {
            if let Some(text) = text {
                row(name, text.to_string());
            }
        }
        row("streams", online.streams.to_string());
        for service in &online.services {
            let description = service.description.as_ref().map_or_else(String::new, |text| format!(" ({text})"));
            row("service", format!("{}{description}", service.name));
        }
    }
    for key in &device.keys {
        let used = key.last_used.map_or_else(|| "never used".to_owned(), |used| format!("last used {used}"));
        row("key", format!("{} {}, added {}, {used}", key.algorithm, key.kid, key.created));
    }
    table(["device", device.device.as_str()], &rows)
}

fn device_failure(what: &str, error: &DeviceError) -> Failure {
    match error {
        DeviceError::Refused(problem) => Failure::refused(what, problem),
        DeviceError::Unreachable(error) => Failure::unreachable(what, error),
        DeviceError::Answer { .. } => Failure::new(Exit::Failed, what)
            .caused_by(error)
            .next("check that the address in the profile is a Moorline relay, and compare the versions"),
    }
}

fn write_failure(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, "cannot write to standard output").caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Vec<Device> {
        let json = r#"[
            {"device": "lamp-1", "keys": [], "created": "2026-11-21T09:30:00Z", "last_seen": "2026-11-21T10:00:00.125Z", "online":
              {"node": "n1", "session": "s1", "since": "2026-11-21T09:31:00Z", "address": "192.0.2.7", "agent": "moorline-agent 0.1.0",
               "services": [{"name": "ssh"}, {"name": "http", "description": "a page"}], "streams": 2}},
            {"device": "lamp-22", "keys": [], "created": "2026-11-21T09:30:00Z", "last_seen": "2026-11-20T10:00:00Z"},
            {"device": "new", "keys": [], "created": "2026-11-21T09:30:00Z"}
        ]"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_list_is_a_plain_table() {
        let expected = "\
DEVICE   STATE    LAST SEEN                 SERVICES  AGENT
lamp-1   online   now                       ssh,http  moorline-agent 0.1.0
lamp-22  offline  2026-11-20T10:00:00.000Z  -         -
new      offline  never                     -         -
";
        assert_eq!(list(&devices()), expected);
    }

    #[test]
    fn a_device_is_shown_with_its_services() {
        let page = page(&devices()[0]);
        assert!(page.starts_with("device        lamp-1\nstate         online\n"), "{page}");
        assert!(page.contains("service       http (a page)\n"), "{page}");
    }

    #[test]
    fn hostile_text_of_a_device_is_printable_in_the_page_and_in_json() {
        let hostile = "x\\u001b[2J\\u202ey\\u2028z";
        let json = format!(
            r#"{{"device": "lamp-1", "keys": [], "created": "2026-11-21T09:30:00Z", "online":
              {{"node": "n1", "session": "{hostile}", "since": "2026-11-21T09:31:00Z", "address": "192.0.2.7", "agent": "{hostile}",
               "hostname": "{hostile}", "os": "{hostile}", "services": [{{"name": "ssh", "description": "{hostile}"}}], "streams": 2}}}}"#
        );
        let device: Device = serde_json::from_str(&json).unwrap();
        let printed = [page(&device), list(std::slice::from_ref(&device)), serde_json::to_string(&device).unwrap()];
        for text in printed {
            assert!(text.contains("x\u{fffd}[2J\u{fffd}y\u{fffd}z"), "{text:?}");
            assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{2028}']), "{text:?}");
        }
    }

    #[test]
    fn a_private_key_is_refused_before_it_is_sent() {
        let failure = parse_key("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap_err();
        assert!(failure.exit == Exit::Usage && failure.causes()[0].contains("private key"), "{failure:?}");
    }
}
