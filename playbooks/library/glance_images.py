"""Ansible module: every image of a cloud in the store of a Glance that shares its database."""

from __future__ import annotations

import hashlib
import http.client
import os
import pwd
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ansible.module_utils import cloud
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: glance_images
short_description: Images copied from another Glance over the same database
description:
  - Glances that share a database list the same images, and each looks for an image's file in its own store. An image
    that this Glance lists and cannot serve is fetched from one that can, compared with the hash that Glance keeps, and
    put where this Glance looks. At the end this Glance has served all of them. Safe to run again.
options:
  url: {description: Of this host's Glance., type: str, required: true}
  sources: {description: URLs of the others., type: list, elements: str, required: true}
  keystone_url: {description: Of the Keystone that it uses., type: str, required: true}
  password: {description: Of the user glance., type: str, required: true}
  directory: {description: Its store., type: path, default: /var/lib/glance/images}
  limit_s: {description: Seconds in which it must serve all., type: int, default: 120}
"""
BLOCK = 1 << 20
PAUSE_S = 0.5


class Image:
    """An image, as Glance lists it."""

    def __init__(self, entry: dict) -> None:
        self.id = str(entry["id"])
        self.name = f"{entry['name']} ({self.id})"
        self.algorithm, self.hash = str(entry["os_hash_algo"]), str(entry["os_hash_value"])


def listed(url: str, token: str, path: str = "/v2/images?status=active&limit=100") -> list[Image]:
    """All images whose content is known, from this page on. Raises CloudError."""
    answer = cloud.request("GET", url + path, token)[1]
    following = listed(url, token, answer["next"]) if "next" in answer else []
    return [*(Image(entry) for entry in answer["images"]), *following]


def fetch(url: str, token: str, image: Image, file: object = None) -> None:
    """Read an image from a Glance, and write it where it is wanted. Raises CloudError when it is not the image."""
    asked = urllib.request.Request(f"{url}/v2/images/{image.id}/file", headers={"X-Auth-Token": token})
    digest = hashlib.new(image.algorithm)
    try:
        with urllib.request.urlopen(asked, timeout=cloud.REQUEST_LIMIT_S) as answer:
            for block in iter(lambda: answer.read(BLOCK), b""):
                digest.update(block)
                if file is not None:
                    file.write(block)
    except (OSError, http.client.HTTPException) as error:
        raise cloud.CloudError(f"{image.name} from {url}: {error}") from error
    if digest.hexdigest() != image.hash:  # one that it has no file of is answered by nothing
        raise cloud.CloudError(f"{image.name} from {url}: the content has another hash than Glance keeps")


def copy(sources: list[str], token: str, image: Image, directory: Path) -> None:
    """Put an image's file into the store, from the first Glance that serves it. Raises CloudError when none does."""
    owner = pwd.getpwnam("glance")
    directory.mkdir(mode=0o750, exist_ok=True)  # Glance's own directory is there since it was started
    os.chown(directory, owner.pw_uid, owner.pw_gid)
    problems = []
    for source in sources:
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{image.id}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                fetch(source, token, image, stream)
            os.chown(temporary, owner.pw_uid, owner.pw_gid)
            Path(temporary).chmod(0o640)
            Path(temporary).replace(directory / image.id)
            return
        except cloud.CloudError as error:
            problems.append(str(error))
        finally:
            Path(temporary).unlink(missing_ok=True)
    raise cloud.CloudError("; ".join(problems))


def bring(values: dict, until: float) -> list[str]:
    """Names of the images that had to be copied. Raises CloudError when this Glance does not serve all in time."""
    token = cloud.authenticate(values["keystone_url"], "glance", values["password"], "service")[0]
    copied = []
    for image in listed(values["sources"][0], token):
        while True:
            try:
                fetch(values["url"], token, image)
                break
            except cloud.CloudError:
                # also one that was made elsewhere and has not come to this site's database yet
                if time.monotonic() > until:
                    raise
            if image.name not in copied:
                copy(values["sources"], token, image, Path(values["directory"]))
                copied.append(image.name)
            else:
                time.sleep(PAUSE_S)
    return copied


def main() -> None:
    """Copy what is missing; `copied` names it."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "sources": {"type": "list", "elements": "str", "required": True},
            "keystone_url": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "directory": {"type": "path", "default": "/var/lib/glance/images"},
            "limit_s": {"type": "int", "default": 120},
        }
    )
    values = module.params
    try:
        copied = bring(values, time.monotonic() + values["limit_s"])
    except (cloud.CloudError, KeyError, OSError, ValueError) as error:
        module.fail_json(msg=f"images of {values['url']}: {error}")
    module.exit_json(changed=bool(copied), copied=copied)


if __name__ == "__main__":
    main()
