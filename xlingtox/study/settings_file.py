"""The settings file of a study: what a user may write, and every mistake in it, together, before any work starts."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlingtox import tuning
from xlingtox.data import Chat
from xlingtox.models.loading import smollm2_file
from xlingtox.study import schema, sections
from xlingtox.study.arguments import check_codes, dtype, existing, is_hub_name, resolved
from xlingtox.study.engine import Engine
from xlingtox.study.judging import Judge, check_judges
from xlingtox.study.loaders import FORM_OF, TableFile, check_table
from xlingtox.study.mistakes import BadSettings, Mistakes, did_you_mean, toml
from xlingtox.study.plan import STAGE, with_needs
from xlingtox.study.recipes import NAMED
from xlingtox.study.sections import without_name
from xlingtox.study.settings import OFF_BY_DEFAULT, STAGES, Settings

_FIELDS = {
    "candidates": "k",
    "doses": "offsets",
    **{
        name: name
        for name in (
            *("stages", "source_language", "n_null", "unit", "amplifications", "n_doses", "n_random"),
            *("n_random_amplified", "dose_prompts", "dose_samples", "attribution_prompts"),
            *("n_samples", "max_new_tokens", "seed"),
        )
    },
}
"""Each key of `[study]`, and the field of `Settings` that it fills."""

_GREEDY = "greedy"


@dataclass(frozen=True)
class SettingsFile:
    """A settings file that has no mistakes.

    Attributes:
        path: the file.
        output_dir: the folder of the study.
        source: the model, for `HookedLM.load`.
        options: the other arguments of `HookedLM.load`.
        languages: the languages to study; None for those of the prompts.
        per_language, seed: the most prompts in each language, and the seed by which they are drawn.
        tables: the tables, by key.
        identify_language: "lingua", "mini", or None.
        judges: the judges, the preferred one first. Each language goes to the first that covers it.
        second_judges: judges that score the same texts again.
        settings: the fields of `Settings` that the file gives, without the recipe.
        recipe: the name of the recipe; None for the one that the model's size asks for.
        overrides: fields of the recipe that the file gives.
        engine: the servers that write; None for the models on this machine.
    """

    path: Path
    output_dir: Path
    source: str
    options: Mapping[str, Any]
    languages: tuple[str, ...] | None
    per_language: int
    seed: int
    tables: Mapping[str, TableFile]
    identify_language: str | None
    judges: tuple[Judge, ...] = dataclasses.field(repr=False)
    settings: Mapping[str, Any]
    recipe: str | None
    overrides: Mapping[str, Any]
    engine: Engine | None = None
    second_judges: tuple[Judge, ...] = dataclasses.field(default=(), repr=False)

    @property
    def local(self) -> bool:
        """Whether the model is a file or a folder, and not a name on the hub."""
        return self.source in ("mini", "smollm2") or Path(self.source).exists()

    @property
    def source_language(self) -> str:
        """The language of tuning and of the probe."""
        return str(self.settings.get("source_language", "en"))


def read(path: str | Path, changes: Mapping[str, Any] | None = None) -> SettingsFile:
    """Read a settings file and check all of it, without reading a model or data.

    Args:
        path: the file, in TOML.
        changes: values in place of those of the file, by place, such as `{"data.seed": 1}`. A `Path` is relative to the
            working folder, a string is like one in the file.

    Raises:
        ValueError: there is no such file, it is not TOML, or it has mistakes: a line for each.

    Example:
        >>> from xlingtox.study import settings_file
        >>> _ = (tmp_path / "mine.toml").write_text('[data]\\nprompts = {loader = "mini.prompts"}\\n')
        >>> settings_file.read(tmp_path / "mine.toml")
        Traceback (most recent call last):
        xlingtox.study.mistakes.BadSettings: mine.toml: [model] is missing: write a section [model] with source = ...
        mine.toml: [judge] is missing: write a section [judge] with kind = "wordlist", ...
    """
    file = Path(path).expanduser().absolute()
    content = _content(file)
    for place, value in (changes or {}).items():
        *sections, key = place.split(".")
        table = content
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = str(value.absolute()) if isinstance(value, Path) else value
    mistakes = Mistakes()
    checked = _checked(file, content, schema.sections(content, mistakes), mistakes)
    if mistakes.lines or checked is None:
        raise BadSettings(file.name, mistakes.lines, source=_source(content))
    return checked


def _content(file: Path) -> dict[str, Any]:
    """Return what a TOML file holds."""
    if not file.is_file():
        reason = "it is a folder" if file.is_dir() else "there is no such file"
        raise BadSettings(str(file), [f"{reason}: `xlingtox study init {file.stem}.toml --like mgpt` writes one"])
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BadSettings(file.name, [f"line {line}: it is not UTF-8: save it as UTF-8"]) from error
    except tomllib.TOMLDecodeError as error:
        reason, at, place = str(error).rpartition(" (at ")
        where = re.match(r"line (\d+)", place) if at else None
        number = where[1] if where else file.read_bytes().count(b"\n") + 1
        reason = reason or str(error)
        raise BadSettings(file.name, [f"line {number}: it is not TOML: {reason[:1].lower()}{reason[1:]}"]) from error


def _checked(
    file: Path, content: Mapping[str, Any], given: Mapping[str, dict[str, Any]], mistakes: Mistakes
) -> SettingsFile | None:
    """Check the values of all sections; None where something is wrong."""
    folder = file.parent
    source, options = _model(given.get("model", {}), folder, mistakes)
    about_data = given.get("data", {})
    if (languages := about_data.get("languages")) is not None:
        check_codes(languages, ("data", "languages"), mistakes)
        if not languages:
            mistakes.add(("data", "languages"), 'is empty: write some, such as ["en", "es"], or leave the key out')
    tables = {
        name: table
        for name in FORM_OF
        if isinstance(about_data.get(name), dict)
        and (table := check_table(name, about_data[name], folder, mistakes)) is not None
    }
    judges = _judges("judge", content.get("judge"), folder, source, mistakes)
    second = content.get("second_judge")
    second_judges = () if second is None else _judges("second_judge", second, folder, source, mistakes)
    settings = _settings(given.get("study", {}), mistakes)
    recipe, overrides = _recipe(given.get("tuning", {}), settings, mistakes)
    engine = sections.engine(given["engine"], mistakes) if "engine" in given else None
    if "frontier" in given:
        settings["frontier"] = sections.frontier(given["frontier"], mistakes)
    if "side_effects" in given:
        settings["side_effects"] = sections.side_effects(given["side_effects"], folder, mistakes)
    source_language = settings.get("source_language", "en")
    if languages and source_language not in languages and "source_language" in settings:
        mistakes.value(("study", "source_language"), source_language, "write one of [data] languages, or add it there")
    if not mistakes.lines:
        _check_stages(settings, tables, source_language, mistakes)
    if about_data.get("identify_language") == "lingua":
        import importlib.util

        if importlib.util.find_spec("lingua") is None:
            where = ("data", "identify_language")
            mistakes.add(where, "needs a package: pip install 'xlingtox[lingua]', or leave the key out")
    if mistakes.lines or source is None:
        return None
    output_dir = resolved(content.get("output_dir", file.stem), folder)
    if output_dir == file:
        mistakes.add(
            ("output_dir",), f"is missing: {file.name} has no ending .toml, after which a folder could be named"
        )
        return None
    return SettingsFile(
        file,
        output_dir,
        source,
        options,
        None if languages is None else tuple(dict.fromkeys(languages)),
        about_data.get("per_language", 100),
        about_data.get("seed", 0),
        tables,
        about_data.get("identify_language"),
        judges,
        settings,
        recipe,
        overrides,
        engine,
        second_judges,
    )


def _model(written: Mapping[str, Any], folder: Path, mistakes: Mistakes) -> tuple[str | None, dict[str, Any]]:
    """Return the model's name or path, and the other arguments for loading it."""
    options = {name: value for name, value in written.items() if name != "source"}
    if "dtype" in options:
        options["dtype"] = dtype(options["dtype"], ("model", "dtype"), mistakes)
    if "adapter" in options:
        options["adapter"] = existing(options["adapter"], ("model", "adapter"), folder, mistakes, hub=True)
    if "device" in options and "device_map" in options:
        mistakes.add(("model", "device_map"), "and device are both given: write one of them")
    if (system := options.pop("system", None)) is not None:
        if not options.get("chat"):
            mistakes.add(("model", "system"), "is for a chat model: write chat = true too")
        options["chat"] = Chat(system=system)
    if (source := written.get("source")) is None:
        return None, options
    if source == "smollm2":
        try:
            smollm2_file()
        except ImportError as error:
            mistakes.add(("model", "source"), f"is {error}")
    if source in ("mini", "smollm2"):
        return source, options
    if "revision" in options and not is_hub_name(source, folder):
        mistakes.add(("model", "revision"), f"is for a name on the hub: leave it out for {source}")
    path = existing(source, ("model", "source"), folder, mistakes, hub=True)
    return str(_tuned_in(path, mistakes) if isinstance(path, Path) else path), options


def _tuned_in(path: Path, mistakes: Mistakes) -> Path:
    """Return the model that was tuned in a study, if the path is the folder of one; else the path itself."""
    if (path / "config.json").exists() or not (path / "stages").is_dir():
        return path
    tuned = sorted(config.parent for config in (path / "tuned").glob("*/config.json"))
    if len(tuned) == 1:
        return tuned[0]
    reason = (
        "has tuned no model yet: run it first" if not tuned else f"has tuned several: write one, such as {tuned[0]}"
    )
    mistakes.add(("model", "source"), f"is the folder of a study, which {reason}")
    return path


def _judges(section: str, written: Any, folder: Path, model: str | None, mistakes: Mistakes) -> tuple[Judge, ...]:
    tables = [written] if isinstance(written, dict) else written
    advice = f'write a section [{section}] with kind = "wordlist", ...'
    if not tables:
        mistakes.add((section,), f"is missing: {advice}")
        return ()
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        mistakes.value((section,), written, advice)
        return ()
    return check_judges(tables, folder, model, mistakes, section=section)


def _settings(written: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """Return the fields of `Settings` that `[study]` gives; each is checked alone, so that all mistakes are found."""
    fields: dict[str, Any] = {}
    for key, value in written.items():
        place, name = ("study", key), _FIELDS[key]
        if key == "stages":
            value = _stages(value, mistakes)
        if key == "source_language":
            check_codes(value, place, mistakes)
            fields[name] = value
            continue
        if key == "dose_samples":
            if value == _GREEDY:
                value = None
            elif not isinstance(value, int) or isinstance(value, bool):
                mistakes.value(place, value, f"write a whole number, or {toml(_GREEDY)} for one greedy continuation")
                continue
        try:
            Settings(**{name: value})
        except (ValueError, TypeError) as error:
            mistakes.add(place, without_name(error, name))
        fields[name] = value
    return fields


def _stages(names: Sequence[str], mistakes: Mistakes) -> list[str] | None:
    """Return the stages to run. To judge is always one of them, so it need not be said."""
    for number, name in enumerate(names):
        if name not in (*STAGES, "judge"):
            mistakes.value(("study", "stages", number), name, f"there is no such stage: {did_you_mean(name, STAGES)}")
    if not names:
        mistakes.add(("study", "stages"), f"is empty: write some of {', '.join(STAGES)}, or leave the key out")
    return [name for name in STAGES if name in names] or None


def _recipe(
    written: Mapping[str, Any], settings: dict[str, Any], mistakes: Mistakes
) -> tuple[str | None, dict[str, Any]]:
    """Return the recipe's name and the fields that override it. The order of the pairs goes to `settings`."""
    reverse, shuffle, recipe = (written.get(key) for key in ("reverse", "shuffle", "recipe"))
    if reverse and shuffle:
        mistakes.add(("tuning", "shuffle"), "and reverse are both true: write one of them")
    if reverse or shuffle:
        settings["pairs_order"] = "reversed" if reverse else "shuffled"
    if recipe is not None and recipe not in NAMED:
        mistakes.value(("tuning", "recipe"), recipe, f"there is no such recipe: {did_you_mean(recipe, NAMED)}")
    overrides = {key: value for key, value in written.items() if key not in ("recipe", "reverse", "shuffle")}
    if "lora" in overrides:
        fields = dict(overrides["lora"])
        if fields.get("bits") == "none":
            fields["bits"] = None
        overrides["lora"] = _lora(fields, mistakes)
    if "steps" in overrides and "epochs" in overrides:
        mistakes.add(("tuning", "epochs"), "and steps are both given: write one of them")
        return recipe, overrides
    base = NAMED.get(recipe or "", tuning.PAPER_FULL)
    for key in (key for key in overrides if key != "label_smoothing"):
        try:
            overridden(base, {name: overrides[name] for name in _together(key) if name in overrides})
        except (ValueError, TypeError) as error:
            mistakes.add(("tuning", key), without_name(error, key))
    return recipe, overrides


def _together(key: str) -> tuple[str, ...]:
    """Return the fields of a recipe that make sense together only."""
    return ("loss_type", "label_smoothing") if key == "loss_type" else (key,)


def _lora(fields: Mapping[str, Any], mistakes: Mistakes) -> tuning.Lora:
    good: dict[str, Any] = {}
    for key, value in fields.items():
        try:
            tuning.Lora(**{key: value})
        except (ValueError, TypeError) as error:
            mistakes.add(("tuning", "lora", key), without_name(error, key))
        else:
            good[key] = value
    return tuning.Lora(**good)


def overridden(recipe: tuning.Recipe, overrides: Mapping[str, Any]) -> tuning.Recipe:
    """Return a recipe with other values in some fields. Steps take the place of epochs, and the other way round.

    Example:
        >>> from xlingtox.study import settings_file
        >>> recipe = settings_file.overridden(xt.tuning.PAPER_FULL, {"steps": 90})
        >>> recipe.steps, recipe.epochs
        (90, None)
    """
    fields = dict(overrides)
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if given in overrides and other not in overrides:
            fields[other] = None
    return dataclasses.replace(recipe, **fields)


def _check_stages(
    settings: Mapping[str, Any], tables: Mapping[str, TableFile], source_language: str, mistakes: Mistakes
) -> None:
    """Find stages that were asked for and whose data are missing. Some tables can be made from others."""
    names = {"toxic_prompts": "prompts"}
    can_be_had = set(tables)
    if "parallel" in tables:
        can_be_had |= {"held_out", "neutral_prompts"}
    if "pairs" in tables and tables["pairs"].loader == "paradetox":
        can_be_had.add("labelled")
    frontier, stages = settings.get("frontier"), settings.get("stages")
    if stages is None:
        stages = [name for name in OFF_BY_DEFAULT if name in settings]
    for stage in with_needs(stages, frontier=frontier):
        for table in STAGE[stage].tables:
            key = names.get(table, table)
            if key not in can_be_had:
                example = schema.Data.model_fields[key].examples[0]  # type: ignore[index]
                sentence = f"is missing: the stage {stage} needs it: write {key} = {toml(example)}"
                mistakes.add(("data", key), f"{sentence}, or leave {_where(stage, settings)}")


def _where(stage: str, settings: Mapping[str, Any]) -> str:
    """Say what to leave out so that a stage is not run."""
    if settings.get("stages") is not None:
        return f"{stage} out of [study] stages"
    if stage == "frontier":
        return "the section [frontier] out"
    frontier = settings.get("frontier")
    if frontier is not None and frontier.asks_for_tuned:
        return "its methods of a tuned model out of [frontier]"
    return "the section [side_effects] out"


def _source(content: Mapping[str, Any]) -> Any:
    model = content.get("model")
    return model.get("source") if isinstance(model, dict) else None
