//! Keys, tokens and profiles as orchestrators mount them: of root, readable for a group, behind symbolic links; and what is refused, with advice
//! that helps where it is given. The programs run as an ordinary user, which needs a suite that runs as root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use moorline_tests::programs::{Done, binaries, run};
use moorline_tests::world::World;
use tempfile::TempDir;
use tokio::process::Command;

const WITHIN: Duration = Duration::from_secs(60);
/// The user as whom the programs run, and that user's group.
const USER: u32 = 41_000;
const GROUP: u32 = 42_000;

/// A folder that everybody may look into.
struct Mount(TempDir);

impl Mount {
    /// `None` where the suite may not act as several users.
    fn new() -> Option<Self> {
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().expect("a temporary folder");
        let is_root = fs::metadata(folder.path()).expect("it is there").uid() == 0;
        if !is_root {
            println!("left out: only root can act as several users");
        }
        is_root.then_some(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of root and this group, as Kubernetes mounts it: `NAME` leads to `..data/NAME`, `..data` to a folder of its own version.
    fn secret(&self, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let version = self.path("..2026");
        if !version.exists() {
            fs::create_dir(&version).expect("a folder");
            symlink("..2026", self.path("..data")).expect("a link");
        }
        symlink(format!("..data/{name}"), self.path(name)).expect("a link");
        put(&version.join(name), content, 0, GROUP, mode);
        self.path(name)
    }
}

fn put(path: &Path, content: &[u8], user: u32, group: u32, mode: u32) {
    moorline_files::create(path, 0o600, content).expect("a new file");
    chown(path, Some(user), Some(group)).expect("root may");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("root may");
}

/// A program as the ordinary user.
fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={USER}")).arg(format!("--regid={GROUP}")).arg("--clear-groups").arg("--").arg(program);
    command.env_remove("HOME").current_dir("/");
    command
}

fn is_refused(done: &Done, words: &[&str]) {
    assert_ne!(done.code, Some(0));
    for words in words {
        assert!(done.err.contains(words), "{words:?} in {}", done.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_root_mounts_for_a_group_is_read_by_all_three_programs() {
    let Some(mount) = Mount::new() else { return };
    let world = World::start().await;
    let (join, token) = (fs::read(world.join_file()).unwrap(), fs::read(world.token_file()).unwrap());
    let profile = fs::read(world.path("profile.toml")).unwrap();

    let list = async |options: &[(&str, &Path)]| {
        let mut command = as_user(&binaries().client);
        for (option, path) in options {
            command.arg(option).arg(path);
        }
        run(command.args(["device", "list"]), WITHIN).await
    };
    let profile = mount.secret("profile.toml", &profile, 0o440);
    list(&[("--profile", &profile)]).await.success();
    let token = mount.secret("token", &token, 0o640);
    list(&[("--profile", &profile), ("--token-file", &token)]).await.success();

    put(&mount.path("join"), &join, 0, GROUP, 0o644);
    let mut init = Command::new(&binaries().agent);
    init.args(["init", "--device", "lamp-1", "--join"]).arg(mount.path("join")).arg("--dir").arg(mount.path("lamp-1"));
    run(&mut init, WITHIN).await.success();
    let made = mount.path("lamp-1").join("device.key");
    let key = mount.secret("device.key", &fs::read(&made).unwrap(), 0o440);
    fs::remove_file(&made).unwrap();
    symlink(&key, &made).unwrap();
    let mut check = as_user(&binaries().agent);
    run(check.args(["check", "--config"]).arg(mount.path("lamp-1").join("agent.toml")), WITHIN).await.success();

    let state = mount.path("relay");
    let mut init = Command::new(&binaries().relay);
    run(init.args(["init", "--name", "localhost", "--state"]).arg(&state), WITHIN).await.success();
    chown(&state, Some(USER), Some(GROUP)).unwrap();
    let signing = state.join("signing.key");
    let mounted = mount.secret("signing.key", &fs::read(&signing).unwrap(), 0o440);
    fs::remove_file(&signing).unwrap();
    symlink(mounted, &signing).unwrap();
    let mut token = as_user(&binaries().relay);
    run(token.args(["token", "new", "--subject", "alice", "--state"]).arg(&state), WITHIN).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_says_what_was_found_and_its_advice_helps() {
    let Some(mount) = Mount::new() else { return };
    let world = World::start().await;
    let profile = mount.secret("profile.toml", &fs::read(world.path("profile.toml")).unwrap(), 0o440);
    let token = fs::read(world.token_file()).unwrap();
    let list = async |token: &Path| {
        let mut command = as_user(&binaries().client);
        run(command.arg("--profile").arg(&profile).arg("--token-file").arg(token).args(["device", "list"]), WITHIN).await
    };
    let file = |name: &str, user: u32, group: u32, mode: u32| {
        let path = mount.path(name);
        put(&path, &token, user, group, mode);
        path
    };
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();

    let exposed = file("exposed", USER, GROUP, 0o640);
    let advice = format!("next: chmod 600 {}", exposed.display());
    is_refused(&list(&exposed).await, &["belongs to user 41000 and has mode 0640: a private file must be closed", &advice]);
    mode(&exposed, 0o600);
    list(&exposed).await.success();
    mode(&exposed, 0o400);
    list(&exposed).await.success();

    let of_root = file("of-root", 0, GROUP, 0o444);
    let advice = format!("next: as root: chmod 640 {}", of_root.display());
    is_refused(&list(&of_root).await, &["belongs to root and has mode 0444", "may be readable to its group (0640)", &advice]);
    mode(&of_root, 0o640);
    list(&of_root).await.success();

    let closed = file("closed", 0, 0, 0o400);
    let found = "belongs to root, group 0, and has mode 0400: user 41000 may not read it";
    is_refused(&list(&closed).await, &[found, "next: as root: chown 41000 ", "chgrp it to a group of this user and chmod 640 it"]);
    chown(&closed, None, Some(GROUP)).unwrap();
    mode(&closed, 0o640);
    list(&closed).await.success();

    let of_another = file("of-another", USER + 1, GROUP, 0o640);
    let found = "belongs to user 41001 and has mode 0640: a private file must belong to user 41000 or root";
    is_refused(&list(&of_another).await, &[found, "next: run this as user 41001, or name a copy of your own (install -m 600 "]);
    chown(&of_another, Some(USER), None).unwrap();
    mode(&of_another, 0o600);
    list(&of_another).await.success();
}

#[tokio::test(flavor = "multi_thread")]
async fn login_leaves_files_and_links_of_others_alone() {
    let Some(mount) = Mount::new() else { return };
    let world = World::start().await;
    let (join, folder) = (mount.path("join"), mount.path("own"));
    put(&join, &fs::read(world.join_file()).unwrap(), 0, GROUP, 0o644);
    let token = mount.secret("token", &fs::read(world.token_file()).unwrap(), 0o440);
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(USER), Some(GROUP)).unwrap();
    let login = async |profile: &Path| {
        let mut command = as_user(&binaries().client);
        command.arg("login").arg("--profile").arg(profile).arg("--join").arg(&join).arg("--token-file").arg(&token);
        run(&mut command, WITHIN).await
    };
    let (of_root, link) = (folder.join("of-root.toml"), folder.join("link.toml"));
    put(&of_root, b"root's", 0, GROUP, 0o644);
    symlink("target.toml", &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(USER + 1), None).unwrap();
    for (profile, owner) in [(&of_root, "belongs to user 0"), (&link, "belongs to user 41001")] {
        is_refused(&login(profile).await, &["not logged in", owner, "not to this user (41000)", "next: run this as the file's owner"]);
    }
    assert_eq!(fs::read(&of_root).unwrap(), b"root's");
    assert!(!folder.join("target.toml").exists());
    std::os::unix::fs::lchown(&link, Some(USER), None).unwrap();
    login(&link).await.success();
    assert_eq!(fs::metadata(folder.join("target.toml")).unwrap().permissions().mode() & 0o777, 0o600);
}
