"""What a person should know of a template, a tokenizer and their rows before anything is trained.

findings   what the template and tokenizer do             (`examine`, `findings`)
survey     what every row becomes, and what is odd in it  (`survey`, `row_checks`, `repeats`, `spans`, `sharing`)
diagnosis  both together: healthy, usable, or not         (`diagnosis`)
views      the terminal, pages, a row's tree, two side by side (`terminal`, `page`, `tree`, `comparing`)
"""

from sapwood.chat.doctor.diagnosis import PROBE, Diagnosis, diagnose, examine, in_light_of, survey_findings
from sapwood.chat.doctor.findings import Finding
from sapwood.chat.doctor.survey import Survey, Surveyor

__all__ = ["PROBE", "Diagnosis", "Finding", "Survey", "Surveyor", "diagnose", "examine", "in_light_of", "survey_findings"]
