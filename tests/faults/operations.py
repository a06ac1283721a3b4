"""The operations whose every system call is made to fail, as plug-ins of the sweep.

Each says what is there before and after it. Whatever is done to it, what is found
later is one of the two, whole; and if its client was told that it succeeded, the second.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import ClassVar

from support.nursery import Child
from support.world import Client, World

HUGE_COUNT = 1 << 19
"""Elements of two huge pages."""

SMALL_COUNT = 5000


@dataclass(frozen=True)
class Held:
    """What is to be found under a name."""

    content: int | None
    """None: not sealed, so anything."""
    owner: str = ""
    """Which client's end is the end of it: ``actor`` or ``reader``; empty for what is sealed."""


State = dict[str, Held]


@dataclass
class Scene:
    """The processes of one point."""

    world: World
    actor: Client
    """Asks for what is to fail."""
    reader: Client
    """Another client, never harmed: it looks, and reads on."""
    backing: str
    seen: dict[str, int] = field(default_factory=dict)
    """What the reader has attached and must be able to read to the end."""

    @property
    def count(self) -> int:
        """Elements of an array of this backing."""
        return SMALL_COUNT if self.backing == "shm-4k" else HUGE_COUNT

    def put(self, name: str, content: int) -> None:
        """A sealed array."""
        self.actor.ask("put", name=name, content=content, count=self.count, backing=self.backing)

    def read(self, name: str, content: int) -> None:
        """Have the reader attach it."""
        assert self.reader.ask("attach", name=name) == content
        self.seen[name] = content


class Operation:
    """One operation.

    Attributes
    ----------
    name
        Of it.
    targets
        The processes whose calls fail in turn.
    backings
        Rungs that it is done on.
    """

    name: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ("coordinator", "actor")
    backings: ClassVar[tuple[str, ...]] = ("hugetlbfs-2m", "shm-4k")

    def prepare(self, scene: Scene) -> None:
        """Make what it needs."""

    def begin(self, scene: Scene) -> Child | None:
        """Ask for it, without waiting; the new coordinator, if it is the start of one."""
        raise NotImplementedError

    def before(self) -> State:
        """What is there if it did not happen."""
        raise NotImplementedError

    def after(self) -> State:
        """What is there if it did."""
        return self.before()


class Connect(Operation):
    """A second session of the client's process."""

    name = "connect"
    backings = ("shm-4k",)

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.actor.ask("close")

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("connect", address=scene.world.address)

    def before(self) -> State:
        return {"keep": Held(7)}


class Create(Operation):
    """An array of zeros."""

    name = "create"
    backings = ("hugetlbfs-2m", "shm-4k", "shm-collapse")

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("create", name="x", count=scene.count, backing=scene.backing)

    def before(self) -> State:
        return {"keep": Held(7)}

    def after(self) -> State:
        return {"keep": Held(7), "x": Held(None, "actor")}


class Seal(Operation):
    """What was filled becomes immutable."""

    name = "seal"

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.actor.ask("create", name="x", count=scene.count, backing=scene.backing)
        scene.actor.ask("fill", name="x", content=9)

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("seal", name="x")

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(None, "actor")}

    def after(self) -> State:
        return {"keep": Held(7), "x": Held(9)}


class Publish(Operation):
    """A new generation under a name that somebody reads."""

    name = "publish"

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.put("x", 11)
        scene.put("next", 12)
        scene.read("x", 11)

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("publish", name="x", source="next")

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(11), "next": Held(12)}

    def after(self) -> State:
        return {"keep": Held(7), "x": Held(12)}


class Attach(Operation):
    """A reader comes."""

    name = "attach"

    def prepare(self, scene: Scene) -> None:
        scene.put("x", 13)

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("attach", name="x")

    def before(self) -> State:
        return {"x": Held(13)}


class Destroy(Operation):
    """A name goes while somebody reads."""

    name = "destroy"

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.put("x", 14)
        scene.read("x", 14)

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("destroy", name="x")

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(14)}

    def after(self) -> State:
        return {"keep": Held(7)}


class Forget(Operation):
    """A name goes of which somebody reads an older generation: that one has no name again."""

    name = "forget"

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.put("x", 17)
        scene.read("x", 17)
        scene.put("next", 18)
        scene.actor.ask("publish", name="x", source="next")

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("destroy", name="x")

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(18)}

    def after(self) -> State:
        return {"keep": Held(7)}


class Save(Operation):
    """A snapshot is made where there is one: whatever becomes of it, no array changes."""

    name = "snapshot"
    backings = ("shm-4k",)

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.put("x", 25)
        if not (scene.world.place / "saved").exists():
            scene.actor.ask("snapshot", directory=str(scene.world.place / "saved"))

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("snapshot", directory=str(scene.world.place / "saved"))

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(25)}


class Restore(Operation):
    """Two names are given to what a snapshot holds, in one step, while somebody reads them."""

    name = "restore"
    backings = ("shm-4k",)

    def prepare(self, scene: Scene) -> None:
        place = scene.world.place / "snapshot"
        if not place.exists():
            scene.put("x", 23)
            scene.put("y", 24)
            scene.actor.ask("snapshot", directory=str(place))
            for name in ("x", "y"):
                scene.actor.ask("destroy", name=name)
        scene.put("keep", 7)
        scene.put("x", 21)
        scene.put("y", 22)
        scene.read("x", 21)

    def begin(self, scene: Scene) -> None:
        place = str(scene.world.place / "snapshot")
        scene.actor.tell("restore", directory=place, backing=scene.backing)

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(21), "y": Held(22)}

    def after(self) -> State:
        return {"keep": Held(7), "x": Held(23), "y": Held(24)}


class Adopt(Operation):
    """A coordinator starts on what a killed one left: whole, half made, superseded, and owned
    by the living and by the dead."""

    name = "adopt"
    targets = ("coordinator",)

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.put("x", 15)
        scene.put("next", 16)
        scene.read("x", 15)
        scene.actor.ask("publish", name="x", source="next")
        scene.reader.ask("create", name="open", count=scene.count, backing=scene.backing)
        scene.actor.ask("create", name="gone", count=scene.count, backing=scene.backing)
        scene.world.kill_coordinator()
        scene.actor.child.signal(signal.SIGKILL)
        scene.actor.child.wait(60)
        scene.world.leave_remains()

    def begin(self, scene: Scene) -> Child:
        return scene.world.hatch(gate=True)

    def before(self) -> State:
        return {"keep": Held(7), "x": Held(16), "open": Held(None, "reader")}


class Resume(Operation):
    """A client takes its session up with the next coordinator."""

    name = "resume"
    backings = ("shm-4k",)

    def prepare(self, scene: Scene) -> None:
        scene.put("keep", 7)
        scene.actor.ask("create", name="open", count=scene.count, backing=scene.backing)
        scene.world.kill_coordinator()
        scene.world.start()

    def begin(self, scene: Scene) -> None:
        scene.actor.tell("attach", name="keep")

    def before(self) -> State:
        return {"keep": Held(7), "open": Held(None, "actor")}


OPERATIONS: tuple[Operation, ...] = (
    Connect(),
    Create(),
    Seal(),
    Publish(),
    Attach(),
    Destroy(),
    Forget(),
    Save(),
    Restore(),
    Adopt(),
    Resume(),
)
