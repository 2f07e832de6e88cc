"""Study: the whole study on a model and data that a settings file names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from xlingtox import processes
from xlingtox.checking import checked
from xlingtox.models.hooked import HookedLM
from xlingtox.study import gathering, report, settings_file
from xlingtox.study.check import check, check_without_weights
from xlingtox.study.models import Models, ModelSource
from xlingtox.study.recipes import NAMED, default_recipe
from xlingtox.study.results import StudyResults
from xlingtox.study.running import run_models
from xlingtox.study.settings import Materials, Settings
from xlingtox.study.settings_file import SettingsFile
from xlingtox.study.study_check import StudyCheck
from xlingtox.study.weights import missing_weights


class Study:
    """A study that a settings file describes. Nothing is read but the file until something is asked for.

    Attributes:
        file: the settings file, checked.

    Example:
        >>> study = xt.Study.from_toml(xt.study.templates.write(tmp_path / "mine.toml", like="ours"))
        >>> study.output_dir.name
        'mine'
        >>> study.load()
        HookedLM('mini': 4 layers x 512 neurons, d_model 128)
        >>> results = study.run()  # doctest: +SKIP
    """

    @checked
    def __init__(self, file: SettingsFile) -> None:
        """Wrap a settings file that was checked. Users call `Study.from_toml`."""
        self.file = file
        self._materials: Materials | None = None

    @classmethod
    @checked
    def from_toml(cls, path: str | Path, *, changes: Mapping[str, Any] | None = None) -> Study:
        """Read a settings file, and check all of it.

        Args:
            path: the file; `xlingtox study init` or `study.templates.write` writes one to begin with.
            changes: values in place of those of the file, by place, such as `{"data.seed": 1, "study.seed": 1}`. A
                `Path` is relative to the working folder, a string is like one in the file.

        Raises:
            ValueError: there is no such file, it is not TOML, or it has mistakes: a line for each.
        """
        return cls(settings_file.read(path, changes))

    def __repr__(self) -> str:
        return f"Study({str(self.file.path)!r}: {self.file.source!r}, in {str(self.output_dir)!r})"

    @property
    def output_dir(self) -> Path:
        """The folder of the study, with `results.json` and `report.html` once it has run."""
        return self.file.output_dir

    @checked
    def settings(self, lm: HookedLM) -> Settings:
        """Return the sizes of the study, with the recipe that the file names or that the model's size asks for."""
        base = default_recipe(lm) if self.file.recipe is None else NAMED[self.file.recipe]
        recipe = settings_file.overridden(base, self.file.overrides)
        return Settings(**self.file.settings, recipe=recipe, engine=self.file.engine)

    def materials(self) -> Materials:
        """Read the data and load the judges; they are kept for the next call.

        Raises:
            ValueError: a table cannot be read, or a judge cannot be loaded. The message begins with the place in the
                settings file.
        """
        if self._materials is None:
            self._materials = gathering.gather(self.file)
        return self._materials

    def load(self) -> HookedLM:
        """Load the model.

        Raises:
            FileNotFoundError, ImportError, ValueError: what `HookedLM.load` raises.
        """
        return HookedLM.load(self.file.source, **self.file.options)

    @checked
    def run(self, *, progress: bool = True) -> StudyResults:
        """Do the study, or what is left of it, and write `results.json` and `report.html` into its folder.

        Raises:
            OSError: the folder cannot be written.
            ValueError: the materials or the settings do not fit the model, or what `materials` and `load` raise.
        """
        materials = self.materials()
        models = Models(ModelSource(self.file.source, self.file.options))
        settings = self.settings(models.base())
        results = run_models(models, materials, output_dir=self.output_dir, settings=settings, progress=progress)
        page = self.output_dir / "report.html"
        processes.from_main(partial(report.write, results, page, toxic_words=materials.toxic_words))
        return results

    @checked
    def check(self, *, progress: bool = True) -> StudyCheck:
        """Read everything, run a few prompts, and say what the study will cost and whether there is anything to find.

        Where the weights are not on this machine, nothing is downloaded: it says what is missing, and what the study
        will take.

        Raises:
            ValueError: what `materials` and `load` raise.
        """
        materials, where = self.materials(), self.output_dir
        source, revision = self.file.source, self.file.options.get("revision")
        if not self.file.local and missing_weights(source, revision) is not None:
            named = NAMED.get(self.file.recipe or "")
            recipe = None if named is None else settings_file.overridden(named, self.file.overrides)
            settings = Settings(**self.file.settings, recipe=recipe, engine=self.file.engine)
            return check_without_weights(
                source, revision=revision, output_dir=where, materials=materials, settings=settings
            )
        lm = self.load()
        languages = self.file.languages
        return check(lm, materials, self.settings(lm), output_dir=where, languages=languages, progress=progress)
