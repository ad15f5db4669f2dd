"""`EvaluatorService`. Generate answers UNIMPLEMENTED, with ErrorInfo, through the generated base class."""

from finetuneflow.v1 import evaluator_service_pb2_grpc


class EvaluatorServicer(evaluator_service_pb2_grpc.EvaluatorServiceServicer):
    """Serves no method yet."""
