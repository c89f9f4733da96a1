# The public names and their modules. `__init__.py` reads this file and imports each name on first use; so do type checkers.
from .analysis.export import export as export
from .analysis.query import query as query
from .analysis.report import Report as Report
from .analysis.report import report as report
from .analysis.review import review as review
from .analysis.review import take_review as take_review
from .api import extract as extract
from .api import label as label
from .api import resume as resume
from .api import retry as retry
from .api import submit as submit
from .api import verify as verify
from .errors import EmotionBatchError as EmotionBatchError
from .errors import Status as Status
from .example.demo import demo as demo
from .progress import Progress as Progress
from .progress import Watcher as Watcher
from .run.plan import plan as plan
from .run.record import Summary as Summary
from .run.run_options import RunOptions as RunOptions
from .run.scheduler import Scheduler as Scheduler
from .run.submit import cancel as cancel
from .settings import FeatureSettings as FeatureSettings
from .settings import Segments as Segments
from .settings import VoicesSettings as VoicesSettings
from .tables.status import status as status
from .training.evaluate import evaluate as evaluate
from .training.fit import TrainingSettings as TrainingSettings
from .training.import_h5 import import_h5 as import_h5
from .training.train import train as train
from .worker.single_recording import label_recording as label_recording

__version__: str
