#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""A rollout on one host: what was there before, whether the host is well with the candidate, and the way back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: trimtab_rollout
short_description: Remember what was before a rollout, see how the host is, accept it or put values back
version_added: "0.1.0"
author: trimtab (@trimtab)
description:
  - Keeps what a host had before a candidate (release, policy, the changes that stood, the keys held, how well it did)
    in C(/var/lib/trimtab/former.json), so that the way back does not depend on the controller, and a play that was
    killed can be run again to the same end.
  - What was there before is what was last accepted. A candidate that never was is nothing to go back to.
options:
  state:
    description:
      - C(remembered), before anything is changed.
      - C(checked), whether the host is well, compared with then.
      - C(accepted), the candidate stays.
      - C(leaving), before going back - undoes what the candidate has changed; returns what to go back to.
      - C(returned), after the former release and policy are back - lets go of what undoing held, and compares.
    type: str
    choices: [remembered, checked, accepted, leaving, returned]
    required: true
  run:
    description:
      - Nothing is done unless the host is locked for this run; see M(trimtab.fleet.trimtab_lock).
      - Empty, that is not asked.
    type: str
    default: ""
  candidate:
    description: For C(remembered), the candidate - SHA-256 of its policy, its release; each empty where it has none.
    type: dict
    default: {policy: "", release: ""}
  sample:
    description: An earlier sample of this host, which begins the time that it is compared with.
    type: dict
    default: {}
  policy:
    description: The name of the policy's file, without C(.toml).
    type: str
    default: 50-policy
  restarts:
    description: How many restarts of roles are well.
    type: int
    default: 0
  reverted:
    description: How many changes of the candidate may have been reverted by the guard.
    type: int
    default: 0
  ratio:
    description: A signal is worse above so many times what it was, ...
    type: float
    default: 3
  share:
    description: ... and by more than so much of all segments, datagrams, connections, ...
    type: float
    default: 0.05
  pressure:
    description: ... or of the time that tasks stalled (PSI).
    type: float
    default: 0.25
attributes:
  check_mode:
    support: full
    description: Remembers and undoes nothing.
"""

EXAMPLES = r"""
- name: Remember what is
  trimtab.fleet.trimtab_rollout:
    state: remembered
    candidate:
      policy: "{{ lookup('ansible.builtin.file', 'policy.toml', rstrip=false) | hash('sha256') }}"
      release: ""
"""

RETURN = r"""
memo:
  description: What is remembered - state (trying, accepted, leaving, returned), candidate, former, and more.
  returned: success
  type: dict
release:
  description: The release in use.
  returned: success
  type: str
releases:
  description: Those that are there.
  returned: success
  type: list
  elements: str
sick:
  description: Why the host is not well; empty when it is.
  returned: success
  type: str
sample:
  description: Totals now, to be given later.
  returned: success
  type: dict
lines:
  description: What was undone.
  returned: success
  type: list
  elements: str
"""

import hashlib
import json
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.trimtab.fleet.plugins.module_utils.host import (
    CONFIG_DIR,
    STATE_DIR,
    HostError,
    Installed,
    error_of,
    last,
    read,
    write,
)
from ansible_collections.trimtab.fleet.plugins.module_utils.lock import insist
from ansible_collections.trimtab.fleet.plugins.module_utils.signals import rates, sample, worse

MEMO = os.path.join(STATE_DIR, "former.json")
SCHEMA = "trimtab.former/v1"
WORSE = ("ratio", "share", "pressure")
# Why a stop or a start puts a trial back (actuators/records.py): that says nothing of the change.
OF_STOPS = ("trimtab stops", "left by a run that did not stop in order")


class Rollout:
    """Each method returns (changed, what to tell)."""

    def __init__(self, module, installed):
        self.module = module
        self.installed = installed
        self.memo = json.loads(read(MEMO) or "{}")
        self.rows = None

    def remembered(self):
        candidate = self.module.params["candidate"]
        state, same = self.memo.get("state"), self.memo.get("candidate") == candidate
        if same and (state == "trying" or (state == "accepted" and self.in_place(candidate))):
            return False, {}
        if state in ("trying", "leaving"):
            # Killed in the middle: what was before that is what counts, and how the host did then.
            return self.keep(state="trying", candidate=candidate), {}
        facts = self.installed.facts()
        if not facts.get("ready"):
            return False, {"sick": "not fine before: %s" % (facts.get("problem") or "not ready")}
        return self.keep(
            schema=SCHEMA,
            state="trying",
            candidate=candidate,
            since=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self.found(facts),
        ), {}

    def found(self, facts):
        """What is here now, and how the host does."""
        first = self.module.params["sample"]
        return {
            "former": {"release": self.installed.release, "policy": self.policy()},
            "standing": [row["id"] for row in facts.get("standing", [])],
            "held": [[row["tunable"], row["netns"]] for row in facts.get("held", [])],
            "newest": max([row["id"] for row in self.history()] or [0]),
            "before": rates(first, sample()) if first else {},
        }

    def checked(self):
        return False, {"sick": "; ".join(self.troubles(sample(), self.module.params["sample"]))}

    def troubles(self, now, first):
        limits, status = self.module.params, self.document("status", "--json")
        if not status.get("ready"):
            return [status.get("problem") or "not ready"]
        words = []
        restarted = {row["name"]: row["restarts"] for row in status["roles"] if row["restarts"]}
        if sum(restarted.values()) > limits["restarts"]:
            words.append(
                "restarted: " + ", ".join(f"{name} {count} times" for name, count in sorted(restarted.items()))
            )
        back = [row for row in self.ours() if row["state"] == "reverted" and row["detail"] not in OF_STOPS]
        if len(back) > limits["reverted"]:
            words.append(f"{len(back)} changes reverted, the last since {back[-1]['detail']}")
        if first:
            words += worse(self.memo.get("before") or {}, rates(first, now), *[limits[each] for each in WORSE])
        return words

    def accepted(self):
        if self.memo.get("state") != "trying":
            return False, {}
        return self.keep(state="accepted"), {}

    def leaving(self):
        if self.memo.get("state") in (None, "returned"):
            return False, {}
        self.keep(state="leaving")
        try:
            # While what made them runs, and before the former policy makes its own.
            return True, {"lines": self.undo(("intent", "trial", "confirmed"))}
        except HostError as error:
            # It may be too sick for orders. What is on trial ends with it, and the rest is undone after that.
            return True, {"lines": [str(error)]}

    def returned(self):
        if self.memo.get("state") in (None, "returned"):
            return False, {}
        lines = self.undo(("confirmed",))
        was = {key for key, _ in self.memo["held"]}
        for key in sorted({row["tunable"] for row in self.installed.facts().get("held", [])} - was):
            lines += self.say("release", key)
        if not self.module.check_mode:
            self.compare()
        return self.keep(state="returned"), {"lines": lines}

    def compare(self):
        """HostError where something is not as it was."""
        former, left = self.memo["former"], [row["tunable"] for row in self.ours() if row["state"] == "confirmed"]
        if left:
            raise HostError("could not be put back: {}".format(", ".join(left)))
        if (self.installed.release, self.policy()) != (former["release"], former["policy"]):
            raise HostError("release or policy is not what it was")

    # --- how

    def undo(self, states):
        """Put back what was changed since the rollout began, the newest first: each puts back what stood before it."""
        wanted = [str(row["id"]) for row in reversed(self.ours()) if row["state"] in states]
        return [line for number in wanted for line in self.say("rollback", number)]

    def policy(self):
        """The policy's file; None where there is none."""
        path = os.path.join(CONFIG_DIR, "conf.d", self.module.params["policy"] + ".toml")
        return read(path) if os.path.exists(path) else None

    def in_place(self, candidate):
        """It is what is here. A candidate without a policy, or without a release, leaves that as it is."""
        policy = hashlib.sha256((self.policy() or "").encode()).hexdigest()
        return candidate["policy"] in ("", policy) and candidate["release"] in ("", self.installed.release)

    def ours(self):
        """The changes made since the rollout began."""
        return [row for row in self.history() if row["id"] > self.memo.get("newest", 0)]

    def history(self):
        """Read once for as long as nothing is undone: a process costs the host more than all else here."""
        if self.rows is None:
            code, out, _err = self.module.run_command([self.installed.program, "history", "--json"])
            # No journal yet: in mode observe there is none.
            self.rows = [] if code else [json.loads(line) for line in out.splitlines()]
        return self.rows

    def document(self, *words):
        _code, out, err = self.module.run_command([self.installed.program, *list(words)])
        try:
            return json.loads(out)
        except ValueError:
            raise HostError(last(err or out)) from None

    def keep(self, **changed):
        """Write it down, at once or not at all."""
        self.memo = {**self.memo, **changed}
        if not self.module.check_mode:
            write(MEMO, json.dumps(self.memo, indent=1, sort_keys=True) + "\n", 0o600)
        return True

    def say(self, *words):
        if self.module.check_mode:
            return []
        self.rows = None
        code, said = self.installed.run(*words)
        if code:
            raise HostError("{}: {}".format(" ".join(words), last(said)))
        return said.splitlines()


def main():
    number = {"type": "int", "default": 0}
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["remembered", "checked", "accepted", "leaving", "returned"],
                "required": True,
            },
            "run": {"type": "str", "default": ""},
            "candidate": {"type": "dict", "default": {"policy": "", "release": ""}},
            "sample": {"type": "dict", "default": {}},
            "policy": {"type": "str", "default": "50-policy"},
            "restarts": number,
            "reverted": number,
            "ratio": {"type": "float", "default": 3},
            "share": {"type": "float", "default": 0.05},
            "pressure": {"type": "float", "default": 0.25},
        },
        supports_check_mode=True,
    )
    try:
        # In check mode nobody has locked it.
        insist("" if module.check_mode else module.params["run"])
        rollout = Rollout(module, Installed(module))
        changed, told = getattr(rollout, module.params["state"])()
    except HostError as error:
        module.fail_json(msg=f"trimtab: {error}")
    except (ValueError, KeyError) as error:
        module.fail_json(msg=f"{MEMO} is damaged: {error}; see what it says, and remove it")
    except OSError as error:
        module.fail_json(msg=f"trimtab: {error_of(error)}")
    installed = rollout.installed
    here = {"release": installed.release, "releases": installed.releases()}
    found = {"memo": rollout.memo, **here, "sick": "", "sample": sample(), "lines": []}
    found.update(told)
    module.exit_json(changed=changed, **found)


if __name__ == "__main__":
    main()
