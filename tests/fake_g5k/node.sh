#!/bin/bash
# First process of a machine that is a network namespace: node.sh FOLDER NAME [USER]   ($BASE: its unpacked Debian)
# FOLDER/up is what the machine has besides $BASE. USER gets an account that may do all, as with Grid'5000's sudo-g5k.
set -euo pipefail
folder=$1 name=$2 user=${3:-}
root=$folder/root
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$folder/up,workdir=$folder/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/sshd"
cp /etc/hosts "$root/etc/hosts"
echo "$name" > "$root/etc/hostname"
hostname "$name"
if [ -n "$user" ]; then
  home=$root/home/$user
  echo "$user:*:0:0::/home/$user:/bin/bash" >> "$root/etc/passwd"
  mkdir -p "$home/.ssh"
  cp /root/.ssh/id_ed25519.pub "$home/.ssh/authorized_keys"
  chmod 700 "$home" "$home/.ssh"
  # shellcheck disable=SC2016 # it is the text of a script
  printf '#!/bin/sh\nexec "$@"\n' > "$root/usr/bin/sudo-g5k"
  chmod 755 "$root/usr/bin/sudo-g5k"
fi
exec chroot "$root" /usr/sbin/sshd -D -e -o UsePAM=no -o UseDNS=no
