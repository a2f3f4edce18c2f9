//! What people paste: join strings, tokens and keys in each other's place, a profile behind a symbolic link, a join string that was lost.

use std::path::Path;
use std::time::Duration;

use moorline_tests::programs::{Done, binaries, run};
use moorline_tests::world::World;
use serde_json::Value;
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(60);

async fn login(profile: &Path, join: &Path, token: &Path) -> Done {
    let mut command = Command::new(&binaries().client);
    command.arg("login").arg("--profile").arg(profile).arg("--join").arg(join).arg("--token-file").arg(token);
    run(&mut command, WITHIN).await
}

/// It failed with this code, and said all of this, and no secret.
fn is_refused(done: &Done, code: i32, words: &[&str]) {
    assert_eq!(done.code, Some(code), "{}", done.err);
    for words in words {
        assert!(done.err.contains(words), "{words:?} in {}", done.err);
    }
    assert!(!done.err.contains("eyJ"), "no token is printed: {}", done.err);
}

const IS_JOIN: &str = "because: this is a join string (a relay's address and CA), not a caller's token";
const USES_JOIN: &str = "next: give the join string to --join; `moorline-relay token new` prints a token";
const IS_TOKEN: &str = "because: this is a caller's token, not a join string (a relay's address and CA)";
const USES_TOKEN: &str = "next: give a token to --token-file of `moorline`; `moorline-relay join` prints the join string";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pasted_in_the_place_of_something_else_is_recognised_and_nothing_is_kept() {
    let world = World::start().await;
    let (join, token, profile) = (world.join_file(), world.token_file(), world.path("new.toml"));
    is_refused(&login(&profile, &join, &join).await, 5, &["does not contain a token", IS_JOIN, USES_JOIN]);
    is_refused(&login(&profile, &token, &token).await, 5, &["does not contain a join string", IS_TOKEN, USES_TOKEN]);
    assert!(!profile.exists());

    let text = std::fs::read_to_string(&join).unwrap();
    is_refused(
        &run(world.client().args(["device", "list"]).env("MOORLINE_TOKEN", &text), WITHIN).await,
        5,
        &["MOORLINE_TOKEN does not", IS_JOIN],
    );
    let secret = std::fs::read_to_string(&token).unwrap();
    let swapped = run(world.client().args(["device", "list"]).env("MOORLINE_JOIN", &secret).env("MOORLINE_TOKEN", &secret), WITHIN).await;
    is_refused(&swapped, 5, &["MOORLINE_JOIN does not", IS_TOKEN]);

    let added = run(world.client().args(["device", "add", "lamp-1", "--key"]).arg(&join), WITHIN).await;
    is_refused(&added, 2, &["because: this is a join string (a relay's address and CA), not a public key", "`moorline-agent key"]);

    let folder = world.path("lamp-1");
    let mut init = Command::new(&binaries().agent);
    let init = run(init.args(["init", "--device", "lamp-1", "--join"]).arg(&token).arg("--dir").arg(&folder), WITHIN).await;
    is_refused(&init, 1, &["does not contain a join string", IS_TOKEN, USES_TOKEN]);
    assert!(!folder.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn login_writes_through_a_symbolic_link_and_the_profile_is_read_through_it() {
    let world = World::start().await;
    let (dotfiles, profile) = (world.path("dotfiles"), world.path("linked.toml"));
    std::fs::create_dir(&dotfiles).unwrap();
    std::os::unix::fs::symlink("dotfiles/profile.toml", &profile).unwrap();
    for time in ["created", "replaced"] {
        let done = login(&profile, &world.join_file(), &world.token_file()).await.success();
        assert!(done.err.contains("through the symbolic link") && done.err.contains("dotfiles/profile.toml"), "{time}: {}", done.err);
        assert!(profile.is_symlink() && dotfiles.join("profile.toml").is_file(), "{time}");
        let mut list = Command::new(&binaries().client);
        run(list.arg("--profile").arg(&profile).args(["device", "list"]), WITHIN).await.success();
    }
    assert_eq!(std::fs::read_dir(&dotfiles).unwrap().count(), 1, "nothing is left beside it");

    std::fs::remove_dir_all(&dotfiles).unwrap();
    let done = login(&profile, &world.join_file(), &world.token_file()).await;
    is_refused(&done, 1, &["not logged in", "next: create the folder that the symbolic link leads into"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_join_string_is_printed_again_and_leads_to_the_relay() {
    let world = World::start().await;
    let (state, known) = (world.path("relay"), std::fs::read_to_string(world.join_file()).unwrap());
    let join = |state: &Path, options: &[&str]| {
        let mut command = Command::new(&binaries().relay);
        command.args(["join", "--state"]).arg(state).args(options);
        command
    };
    let printed = run(&mut join(&state, &[]), WITHIN).await.success().text();
    let port = format!("localhost:{}#", world.address.port());
    assert_eq!(printed.trim_end().replace("localhost:1#", &port), known, "as init printed it, with init's port");

    // The port that devices dial is another one: it is the operator's to say.
    let config = std::fs::read_to_string(state.join("relay.toml")).unwrap();
    std::fs::write(state.join("relay.toml"), config.replace("#ports = []", &format!("ports = [{}]", world.address.port()))).unwrap();
    let printed = run(&mut join(&state, &["--json"]), WITHIN).await.success();
    let printed: Value = serde_json::from_slice(&printed.out).unwrap();
    assert_eq!(printed["join"], known.as_str());
    assert_eq!(printed["ca_file"], state.join("ca.pem").display().to_string());
    assert_eq!(printed.as_object().map(serde_json::Map::len), Some(2), "no secret: {printed}");

    let (file, profile) = (world.path("again"), world.path("again.toml"));
    std::fs::write(&file, run(&mut join(&state, &[]), WITHIN).await.success().out).unwrap();
    login(&profile, &file, &world.token_file()).await.success();
    let mut list = Command::new(&binaries().client);
    run(list.arg("--profile").arg(&profile).args(["device", "list"]), WITHIN).await.success();

    let help = run(Command::new(&binaries().relay).args(["join", "--help"]), WITHIN).await.success().text();
    assert!(help.contains("Examples:\n  moorline-relay join --state /var/lib/moorline > join.txt"), "{help}");
    is_refused(
        &run(&mut join(&world.path("none"), &[]), WITHIN).await,
        1,
        &["next: give --state the folder that `moorline-relay init` made"],
    );
}
